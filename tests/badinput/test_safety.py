"""What is read from disk runs no code and names no file outside its folder; tokens stay out of files."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

import pytest

from lsat_ray.adapters.store import MANIFEST, AdapterStore
from lsat_ray.config import Experiment
from lsat_ray.errors import LsatError
from lsat_ray.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(p for part in ("lsat_ray", "jobs", "benchmarks") for p in (ROOT / part).rglob("*.py"))
PICKLES = {"pickle", "cloudpickle", "dill", "shelve", "joblib", "marshal"}
FORBIDDEN = {"eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "np.load", "torch.load"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_that_is_read_runs_code(path: Path) -> None:
    """No pickle in any dress, `yaml.safe_load` alone, no shell, and no code of a model's repository."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            taken = {n.partition(".")[0] for n in names} & {
                "pickle",
                "cloudpickle",
                "dill",
                "shelve",
                "joblib",
                "marshal",
            }
            assert not taken, f"line {node.lineno}: {taken}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in FORBIDDEN, f"line {node.lineno}: {called}"
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert options.get("shell", "False") == "False", f"line {node.lineno}: a shell"
            assert options.get("trust_remote_code", "False") == "False", f"line {node.lineno}: trust_remote_code"
            assert "allow_pickle" not in options, f"line {node.lineno}: allow_pickle"


def sealed(tree: dict[str, object]) -> str:
    """Write a manifest as the store does, its own SHA-256 included: what an attacker can do too."""

    def text(whole: dict[str, object]) -> str:
        return json.dumps(whole, indent=2, sort_keys=True)

    return text({**tree, "check": hashlib.sha256(text(tree).encode()).hexdigest()})


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "sub/../x", "..", ""])
def test_a_manifest_names_no_file_outside_its_folder(name: str, tmp_path: Path) -> None:
    """Its files were opened wherever they lay, and a SHA-256 said whether a guess at their content was right."""
    store = AdapterStore(tmp_path / "runs" / "adapters")
    digest = "ab" * 32
    folder = store.path(digest)
    folder.mkdir(parents=True)
    (tmp_path / "secret").write_text("s")
    files = {name: hashlib.sha256(b"s").hexdigest()}
    (folder / MANIFEST).write_text(sealed({"digest": digest, "spec": {}, "files": files, "facts": {}}))
    with pytest.raises(LsatError, match="which is not in its folder"):
        store.load_state(digest)


def test_an_adapter_is_a_name_and_not_a_path(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "adapters")
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / MANIFEST).write_text(sealed({"digest": "../elsewhere", "spec": {}, "files": {}, "facts": {}}))
    with pytest.raises(LsatError, match="not a name in"):
        store.load_state("../elsewhere")


def test_a_run_writes_the_tokens_variable_and_never_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lsat_ray.distributed import serving

    token = "correct-horse-battery-staple"
    monkeypatch.setenv("LSAT_TEST_TOKEN", token)
    config = Experiment.model_validate({"name": "mine", "serve": {"token_env": "LSAT_TEST_TOKEN", "port": 18597}})
    folder = RunFolder(tmp_path, config)
    folder.open()
    folder.close()
    serving.check(config)
    setup = serving._bind(config, tmp_path, (), tmp_path / "adapters", tmp_path)
    assert hashlib.sha256(token.encode()).hexdigest() in repr(setup._bound_deployment._replica_config.init_args)
    assert token not in repr(setup._bound_deployment._replica_config.init_args)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and token.encode() in p.read_bytes()]
    assert b"LSAT_TEST_TOKEN" in (folder.path / "config.resolved.yaml").read_bytes()
