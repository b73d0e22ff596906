"""A pass that is none, for tests of the workspace."""

from vlmc.workspace import Artifact, Event, Workspace


class Passes:
    """A fake pass that counts its runs."""

    def __init__(self, root, **options):
        self.events: list[Event] = []
        self.root = root
        self.workspace = Workspace(root, self.events.append, **options)
        self.runs = 0

    def __call__(self, name="export", text="graph", kilobytes=4, **given) -> Artifact:
        def fn(folder):
            self.runs += 1
            (folder / "programs").mkdir()
            (folder / "programs" / "a.onnx").write_text(text)
            (folder / "b.bin").write_bytes(bytes(range(256)) * kilobytes * 4)

        arguments = {"inputs": (), "options": {}, "libraries": (), "code": 1, **given}
        return self.workspace.step(name, fn, **arguments)

    def notices(self):
        return [event.message for event in self.events if event.kind == "notice"]


def alter(artifact):
    """Flips a byte of a file too large to be hashed on every hit."""
    path = artifact.folder / "b.bin"
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(1_500_000)
        file.write(b"\xff\xfe")
