"""Fresh clones in which the documentation's commands are run, or checked without being run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from documents import Block, commands_of

PLACEHOLDERS = {"RUN": "image-classification/digits/attnscale/seed10", "DATASET": "digits", "TIER": "lab"}
"""What stands for the words that a reader replaces."""

PLACEHOLDER = re.compile("|".join(rf"\b{name}\b" for name in PLACEHOLDERS))

UNCHECKED = ("git", "cd", ".", "tmux", "export", "pip")
"""Programs of marked blocks that are none of the project's."""

METRICS = """\
import sys
from atlas.study import Study
print(*(run.metrics for run in Study.read(sys.argv[1]).runs if run.declared_metrics), sep="\\n")
"""
"""Lists the metrics.json of every run of a study: targets, although no other job has them among its inputs."""

REPORT = "trap 'echo \"line $((LINENO)): $BASH_COMMAND\" >&2' ERR\n"


@dataclass(frozen=True)
class Checkout:
    """A clone with the environment linked into it, as ``make env`` would leave it."""

    folder: Path
    known: dict[str, str] = field(default_factory=dict, compare=False)
    """What is wrong with commands that were checked before, by what was typed."""

    @classmethod
    def clone(cls, source: Path, target: Path) -> Checkout:
        """Clone what is committed, and lay over it what is changed and not yet committed."""
        subprocess.run(["git", "clone", "--quiet", str(source), str(target)], check=True)
        listing = ["git", "ls-files", "-z", "--modified", "--others", "--exclude-standard"]
        changed = subprocess.run(listing, cwd=source, check=True, capture_output=True, text=True).stdout
        for name in filter(None, changed.split("\0")):
            path = target / name
            if not (source / name).exists():
                path.unlink(missing_ok=True)
            elif (source / name).is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes((source / name).read_bytes())
        (target / ".venv").unlink(missing_ok=True)
        (target / ".venv").symlink_to(sys.prefix)
        return cls(target)

    @property
    def environment(self) -> dict[str, str]:
        """That of a person who has activated the clone's environment."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
        path = f"{self.folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
        sources = [self.folder / "src", *(self.folder / "plugins").glob("*/src")]
        return {**kept, "PATH": path, "PYTHONPATH": os.pathsep.join(map(str, sources)), "OMP_NUM_THREADS": "1"}

    def call(self, command: Sequence[str], typed: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run one command in the clone, with ``typed`` as its input."""
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, input=typed)

    def write(self, block: Block) -> None:
        """Write the file that a block holds."""
        assert block.argument is not None
        path = self.folder / block.argument
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)

    def run(self, block: Block) -> None:
        """Run a block's commands one after the other; the first that fails is the error."""
        done = self.call(["bash", "-euo", "pipefail", "-c", REPORT + block.text])
        assert done.returncode == 0, f"{block.place}: exit status {done.returncode}\n{done.stdout}{done.stderr}"

    def check_script(self, block: Block) -> list[str]:
        """What is wrong with a block that cannot be run here."""
        done = self.call(["bash", "-n"], block.text)
        if done.returncode:
            return [f"{block.place}: {done.stderr}"]
        return self.check(commands_of(block.text), block.place)

    def check(self, commands: Sequence[list[str]], place: str) -> list[str]:
        """What is wrong with commands, each with what was typed; nothing of it is done."""
        typed = {" ".join(words): words for words in map(_bare, commands) if words}
        new = {text: words for text, words in typed.items() if text not in self.known}
        self._check_atlas({text: words for text, words in new.items() if words[0] == "atlas"})
        self.known.update({text: self._check_other(words) for text, words in new.items() if words[0] != "atlas"})
        return [f"{place}: {text}: {self.known[text]}" for text in typed if self.known[text]]

    def _check_other(self, words: list[str]) -> str:
        program = words[0]
        if program == "snakemake":
            return self._check_snakemake(words[1:])
        if program == "make":
            return self._failure(["make", "--dry-run", *words[1:]])
        if program == "dvc":
            parse = "import sys; from dvc.cli.parser import get_main_parser as p; p().parse_args(sys.argv[1:])"
            return self._failure([sys.executable, "-c", parse, *words[1:]])
        if words[:2] == ["python", "-m"]:
            module = self.folder / words[2].replace(".", "/")
            found = (module / "__main__.py").is_file() or module.with_suffix(".py").is_file()
            return "" if found else f"there is no package or module {words[2]} to run"
        if program == "python":
            missing = next((word for word in words[1:2] if not (self.folder / word).is_file()), None)
            return f"there is no file {missing}" if missing else ""
        return "" if program in UNCHECKED else f"nothing is known of {program}"

    def _failure(self, command: Sequence[str]) -> str:
        done = self.call(command)
        return "" if done.returncode == 0 else f"exit status {done.returncode}\n{done.stdout}{done.stderr}"

    def _check_snakemake(self, arguments: list[str]) -> str:
        """A dry run, and whether the files that are asked for are of the study: a rule's pattern also fits other names."""
        failed = self._failure(["snakemake", "-n", *arguments])
        targets = [] if failed else [word for word in arguments if "/" in word and "=" not in word]
        if not targets:
            return failed
        config = [word for word in arguments if word.startswith("tier=")]
        planned = self.call(["snakemake", "--summary", *(["--config", *config] if config else [])]).stdout
        runs = self.call([sys.executable, "-c", METRICS, config[0].partition("=")[2] if config else "demo"]).stdout
        known = {line.partition("\t")[0] for line in (planned + runs).splitlines()}
        return "".join(f"{target} is no file of the study\n" for target in targets if target not in known)

    def _check_atlas(self, commands: dict[str, list[str]]) -> None:
        """All of them in one process, because starting one is what takes time."""
        if not commands:
            return
        program = Path(__file__).with_name("atlas_commands.py")
        done = self.call([sys.executable, str(program)], json.dumps(list(commands.values())))
        found = json.loads(done.stdout) if done.returncode == 0 else [done.stderr] * len(commands)
        self.known.update(zip(commands, found, strict=True))


def _bare(words: list[str]) -> list[str]:
    """A command as it is checked: placeholders filled in, without variables or ``srun`` before it or a folder in its name."""
    words = [PLACEHOLDER.sub(lambda found: PLACEHOLDERS[found[0]], word) for word in words]
    while words and (re.match(r"[A-Z_]+=", words[0]) or words[0] == "srun" or words[0].startswith("--")):
        words = words[1:]
    return [words[0].rpartition("/")[2] or words[0], *words[1:]] if words else []
