"""``vlmc verify``: is this the bundle that was built, and does it answer the same here?"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vlmc.bundle.goldens import CaseResult, Finding, read_cases, run_case
from vlmc.bundle.manifest import LogitsSpec
from vlmc.bundle.store import Bundle, read_bundle, verify_digests
from vlmc.cli.notice import tell_portable
from vlmc.errors import VlmcError


def verify(
    bundle: Annotated[Path, typer.Argument(help="A version folder, or a NAME folder.")],
    threads: Annotated[
        int | None, typer.Option("--threads", help="Threads [default: physical cores].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Hash every file again, then run the stored golden cases on this machine.

    Exits 2 when anything differs. Damaged files are reported and not run.
    """
    found = read_bundle(bundle)
    count = len(found.manifest.files) + 1
    damage = _damage(found)
    results: list[CaseResult] = []
    if damage is None:
        if not as_json:
            print(f"ok    {count} files have the digests that were built")
        results = _run_cases(found, threads, quiet=as_json)
    elif not as_json:
        print(f"DIFFER {damage}")
    ok = damage is None and all(result.ok for result in results)
    if as_json:
        report = {
            "ok": ok,
            "bundle": str(found.folder),
            "files": count,
            "damage": damage.message if damage else None,
            "goldens": [{"ok": result.ok, **asdict(result)} for result in results],
        }
        print(json.dumps(report))
    elif damage is None and not results:
        print("the bundle holds no golden cases")
    if not ok:
        raise typer.Exit(2)


def _damage(bundle: Bundle) -> VlmcError | None:
    try:
        verify_digests(bundle)
    except VlmcError as error:
        return error
    return None


def _run_cases(bundle: Bundle, threads: int | None, *, quiet: bool) -> list[CaseResult]:
    from vlmc.backends import SessionError
    from vlmc.runtime import load

    cases = read_cases(bundle)
    if not cases:
        return []
    model = load(bundle.folder, threads=threads)
    model.rules = LogitsSpec()  # goldens are what the programs themselves choose
    tell_portable(model)
    results = []
    for case in cases:
        try:
            result = run_case(model, bundle, case)
        except (VlmcError, SessionError) as error:
            failed = Finding("run", False, str(error))
            result = CaseResult(case.name, case.computed_by, (failed,))
        results.append(result)
        if not quiet:
            print(f"{'ok   ' if result.ok else 'DIFFER'} {case.name} (by {case.computed_by})")
            for finding in result.findings:
                print(f"  {'ok   ' if finding.ok else 'DIFFER'} {finding.what}: {finding.detail}")
    return results
