"""What every session of onnxruntime is opened with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_FOLDER = "session.model_external_initializers_file_folder_path"
# On x86 without VNNI, onnxruntime's products of 8 bits saturate sums of two products in 16 bits,
# unless it is told to take its time. Kernels of ours do not.
_PRECISE = "session.x64quantprecision"


def session_options(threads: int, folder: Path | None = None, *, log: int = 4) -> Any:
    """An ``onnxruntime.SessionOptions``.

    Args:
        threads: Of each operator.
        folder: What locations of external data are relative to.
        log: From which level on it says something; 4 is fatal. What it would log, it raises.
    """
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = log
    settings.add_session_config_entry(_PRECISE, "1")
    if folder:
        settings.add_session_config_entry(_FOLDER, str(folder))
    return settings
