"""Times servers of a base, with LoRA, and with LoRaDA-LA, in turns, and writes benchmarks/NOTES.md.

    python benchmarks/serving/run.py FOLDER [--vllm PYTHON] [--rounds 3] [--turns 9]

FOLDER keeps the runs and exports that are served. PYTHON is that of an environment with
lorada-vllm. All servers run at one time and are asked one after the other, round after round. Every
figure is the median of the rounds. What the map costs is measured in turns of their own, in which a
server is asked with the map, without it, and without it again, which shows noise.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))

from library.page import markdown_table, write_marked
from serving.load import Load, measure

from lorada.runs.result import hardware
from lorada.support.files import json_text, write_atomic

HERE = Path(__file__).parent
RESULTS, PAGE = HERE.parent / "results" / "serving.json", HERE.parent / "NOTES.md"
MODEL, BASE, WITHOUT, WITH = "smollm2-135m", "base alone", "LoRA + Adapter-FFN", "LoRaDA-LA"
LORA = ["lora.r=1", "lora.lora_alpha=2", "lora.target_modules=[o_proj,down_proj]"]
ADAPTER = ["bottleneck.rank=18", "bottleneck.scale=4.0"]
# What is served → method and settings. The map is all that the last has and the one before has not.
RUNS = {
    "LoRA": ("lora", LORA),
    WITHOUT: ("lora+adapter_ffn", LORA + ADAPTER),
    WITH: ("lorada_la", []),
}
OURS, VLLM = "lorada serve", "vLLM"
FIGURES = {
    "requests_per_second": "requests/s", "tokens_per_second": "tokens/s",
    "first_token_p50": "first token, p50, s", "first_token_p99": "first token, p99, s",
}  # fmt: skip
Round = dict[str, dict[str, float]]  # what was served → figures
Turn = dict[str, float]  # "without" the map, "with" it, without it "again" → tokens/s


def main() -> None:
    given = _arguments()
    folders = {name: _trained(given.folder, name) for name in RUNS}
    load = Load(given.requests, given.connections)
    found: dict[str, list[Round]] = {OURS: []} | ({VLLM: []} if given.vllm else {})
    with ExitStack() as servers:  # all at one time: those that wait take no processor time
        at = {OURS: _ours(servers, folders)}
        if given.vllm:
            exports = {name: _exported(given.folder, name, folders) for name in (BASE, *RUNS)}
            at[VLLM] = _vllm(servers, given.vllm, exports)
        for models in at.values():  # not counted: the first requests make caches and graphs
            for url, model in models.values():
                measure(url, model, Load(given.connections, given.connections))
        turns: dict[str, list[Turn]] = {server: [] for server in at}
        results = {
            "load": asdict(load), "hardware": hardware(), "rounds": found, "turns": turns,
            "vllm": _vllm_version(given.vllm) if given.vllm else None,
        }  # fmt: skip
        for number in range(given.rounds):
            for server, models in at.items():
                found[server].append({name: measure(*one, load) for name, one in models.items()})
                print(f"round {number + 1}, {server}: {found[server][-1]}", flush=True)
            write_atomic(given.results, json_text(results))
        for number in range(given.turns):
            for server, models in at.items():
                turns[server].append(_turn(models, load, number))
                print(f"turn {number + 1}, {server}: {turns[server][-1]}", flush=True)
            write_atomic(given.results, json_text(results))
    write_marked(given.page, "serving/run.py", page(json.loads(given.results.read_text())))


def _turn(models: dict[str, tuple[str, str]], load: Load, number: int) -> Turn:
    """Tokens in a second without the map, with it, and without it again; each is first in turn."""
    order = [(WITHOUT, "without"), (WITH, "with"), (WITHOUT, "again")]
    order = order[number % 3 :] + order[: number % 3]
    return {key: measure(*models[name], load)["tokens_per_second"] for name, key in order}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vllm", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    return parser.parse_args()


def _trained(folder: Path, name: str) -> Path:
    """A run of one step: how long an answer takes does not depend on what was learned."""
    method, settings = RUNS[name]
    output = folder / method
    if not output.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        rows = folder / "rows.jsonl"
        lines = ({"prompt": f"{i} plus 1 is", "response": f" {i + 1}"} for i in range(16))
        rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
        _lorada(
            "train", "--model", MODEL, "--method", method, "--data", rows, "--output", output,
            "max_steps=1", "report_to=[]", *settings,
        )  # fmt: skip
    return output


def _exported(folder: Path, name: str, runs: dict[str, Path]) -> Path:
    """A folder for vLLM."""
    target = folder / f"export-{name.replace(' ', '-')}"
    if target.is_dir():
        return target
    if name != BASE:
        _lorada("export", runs[name], target)
        return target
    from lorada.inference.load import load_run

    run = load_run(runs["LoRA"])
    run.model.unload().save_pretrained(target)
    run.tokenizer.save_pretrained(target)
    return target


def _lorada(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "lorada.cli", *map(str, words)], check=True)


def _ours(servers: ExitStack, folders: dict[str, Path]) -> dict[str, tuple[str, str]]:
    """One server of all runs: its address, and the name of each model there."""
    port = _free_port()
    words = [sys.executable, "-m", "lorada.cli", "serve", *folders.values(), "--port", port]
    url = servers.enter_context(_running(words, port))
    names = {BASE: MODEL} | {name: folder.name for name, folder in folders.items()}
    return {name: (url, model) for name, model in names.items()}


def _vllm(servers: ExitStack, python: str, exports: dict[str, Path]) -> dict[str, tuple[str, str]]:
    """A server for each export."""
    found = {}
    for name, folder in exports.items():
        port = _free_port()
        words = [
            python, "-m", "vllm.entrypoints.openai.api_server", "--model", folder,
            "--served-model-name", "served", "--dtype", "float32", "--port", port,
            "--max-model-len", 2048,
        ]  # fmt: skip
        found[name] = (servers.enter_context(_running(words, port)), "served")
    return found


@contextmanager
def _running(words: list, port: int) -> Iterator[str]:
    """The address of a server that runs in a ``with`` block."""
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([str(word) for word in words], env=environment)
    try:
        end = time.monotonic() + 600
        while not _healthy(url):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{words[1:4]} did not start")
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=120)


def _healthy(url: str) -> bool:
    try:
        return urllib.request.urlopen(f"{url}/v1/models", timeout=5).status == 200
    except OSError:
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _vllm_version(python: str) -> str:
    code = "from lorada_vllm.versions import installed; print(*installed())"
    return subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def page(results: dict) -> str:
    """The table of all figures, and the ratios of each round."""
    header = ["server", "model", *FIGURES.values()]
    lines = []
    for server, rounds in results["rounds"].items():
        for name in rounds[0]:
            cells = [_spread([one[name][figure] for one in rounds]) for figure in FIGURES]
            lines.append([server, name, *cells])
    load, machine = results["load"], results["hardware"]
    text = [
        f"\n{MODEL}, fp32, {machine['cpu']}, {machine['cores']} cores; "
        f"{load['requests']} requests over {load['connections']} connections, "
        f"prompts of {load['read'][0]} to {load['read'][1]} "
        f"tokens, answers of {load['write'][0]} to {load['write'][1]}; "
        + _rounds(len(results["rounds"][OURS]))
        + (f" vLLM: {results['vllm']}." if results["vllm"] else ""),
        "",
        markdown_table(header, lines),
        "",
    ]
    for server, turns in results["turns"].items():
        ratio = [2 * turn["with"] / (turn["without"] + turn["again"]) for turn in turns]
        noise = [turn["again"] / turn["without"] for turn in turns]
        text.append(
            f"- {server}, tokens/s of {WITH} over {WITHOUT}, which is the same without the map: "
            f"{_spread(ratio)} in {len(turns)} turns; the latter over itself: {_spread(noise)}"
        )
    return "\n".join([*text, ""])


def _rounds(count: int) -> str:
    if count == 1:
        return "one round, so nothing is said of noise."
    return f"median of {count} rounds, with the smallest and the largest."


def _spread(numbers: list[float]) -> str:
    if len(numbers) == 1:
        return f"{numbers[0]:.3g}"
    return f"{median(numbers):.3g} ({min(numbers):.3g}–{max(numbers):.3g})"


if __name__ == "__main__":
    main()
