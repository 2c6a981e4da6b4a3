"""The hub of the tests speaks the real protocol: huggingface_hub itself reads everything from it."""

import json
import subprocess
import sys
from pathlib import Path

from hub_client import environment
from hub_server import COMMIT, hub_server

FILES = {"README.md": b"# Data\n", "data/a.parquet": b"a" * 5000, "data/b.parquet": b"b" * 100, "data/deep/c.txt": b"c"}
READER = """
import json, pathlib, sys
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.utils import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
api, repo, folder = HfApi(), "owner/corpus", pathlib.Path(sys.argv[1])
def refused(error, action):
    try: action()
    except error: return True
    return False
whole = pathlib.Path(snapshot_download(repo, repo_type="dataset", local_dir=folder / "whole"))
print(json.dumps({
    "commit": api.dataset_info(repo).sha,
    "refs": [(branch.name, branch.target_commit) for branch in api.list_repo_refs(repo, repo_type="dataset").branches],
    "listed": sorted(entry.path for entry in api.list_repo_tree(repo, "data", repo_type="dataset")),
    "deep": sorted(entry.path for entry in api.list_repo_tree(repo, repo_type="dataset", recursive=True, expand=True)),
    "paths": [(info.path, info.size, info.lfs is not None) for info in api.get_paths_info(repo, ["README.md", "data/a.parquet"], repo_type="dataset")],
    "one": pathlib.Path(hf_hub_download(repo, "data/a.parquet", repo_type="dataset", cache_dir=folder / "cache")).read_text(),
    "whole": {str(path.relative_to(whole)): path.read_text() for path in whole.rglob("*") if path.is_file() and ".cache" not in path.parts},
    "missing": [
        refused(EntryNotFoundError, lambda: hf_hub_download(repo, "x", repo_type="dataset")),
        refused(RevisionNotFoundError, lambda: hf_hub_download(repo, "README.md", revision="x", repo_type="dataset")),
        refused(RepositoryNotFoundError, lambda: hf_hub_download("owner/x", "README.md", repo_type="dataset")),
    ],
}))
"""


def test_the_real_client_reads_all_of_the_test_hub(tmp_path: Path) -> None:
    with hub_server("owner/corpus", dict(FILES)) as hub:
        done = subprocess.run([sys.executable, "-c", READER, tmp_path], capture_output=True, text=True, timeout=60, env=environment(hub, tmp_path / "home"))
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout)
    assert seen["commit"] == COMMIT
    assert seen["refs"] == [["main", COMMIT], ["refs/convert/parquet", COMMIT]]
    assert seen["listed"] == ["data/a.parquet", "data/b.parquet", "data/deep"]
    assert seen["deep"] == sorted([*FILES, "data", "data/deep"])
    assert seen["paths"] == [["README.md", 7, False], ["data/a.parquet", 5000, True]]
    assert seen["one"] == "a" * 5000
    assert seen["whole"] == {name: data.decode() for name, data in FILES.items()}
    assert seen["missing"] == [True, True, True]
