"""Print the numbers of "A real run" of docs/explore.md, and take its pictures.

    lorada train syllogisms --output runs/syllogisms training.save_total_limit=4
    python scripts/explore_pictures.py runs/syllogisms/checkpoint-20 docs

It writes explore-heads.png, explore-head.png, explore-next.png and explore-phone.png into the last
folder. The head that is open is the one whose map acts most. It needs playwright and Chromium.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from playwright.sync_api import Page, sync_playwright
from transformers import AutoModelForCausalLM, AutoTokenizer

import lorada
from lorada.explore.explanation import Explanation
from lorada.training.models.loading import model_folder

WIDE, PHONE, HIGH, MARGIN = 1200, 390, 1050, 16  # pixels
QUESTION = "Does it logically follow that: "
# Held-out rows of the quickstart → their right answers.
ROWS = {
    "1. Some artists are musicians\n2. No musicians are doctors\n"
    f"{QUESTION}Some artists are not doctors?\nAnswer:": "Yes",
    "1. All dogs are dolphins\n2. All dolphins are scientists\n"
    f"{QUESTION}No dogs are scientists?\nAnswer:": "No",
}


def main(adapter: Path, folder: Path) -> None:
    name = model_folder("smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name), adapter)
    found = {}
    for text, right in ROWS.items():
        found[text] = lorada.explain(model, tokenizer(text, return_tensors="pt"), tokenizer)
        print(f"{text!r}, right: {right}")
        for setting, shares in found[text].probabilities.items():
            ids = {word: tokenizer(f" {word}")["input_ids"][0] for word in ("Yes", "No")}
            print(f"  {setting}:", {word: round(float(shares[0, i]), 3) for word, i in ids.items()})
    first = next(iter(found.values()))
    layer, head = most_acting(first)
    print_numbers(first, layer, head, [tokenizer.decode([one]) for one in first.ids[0].tolist()])
    with tempfile.TemporaryDirectory() as place:
        page = Path(place) / "explore.html"
        first.to_html(page)
        take_all(page, layer, head, folder)


def most_acting(found: Explanation) -> tuple[int, int]:
    """The layer and the head whose map has the largest effect."""
    effect = torch.stack([layer.effect for layer in found])
    return divmod(int(effect.argmax()), effect.shape[1])


def print_numbers(found: Explanation, layer: int, head: int, tokens: list[str]) -> None:
    """Print what the map does in all layers, and what it does in one head."""
    effect = torch.stack([one.effect for one in found])
    negative = torch.stack([one.negative for one in found])
    means = effect.mean(1)
    print(
        "effect by layer:", {i: rounded(means[i]) for i in means.argsort(descending=True).tolist()}
    )
    print("effect: median", rounded(effect.median()), "largest", rounded(effect.max()))
    print(
        "share of the sum below 0: mean", rounded(negative.mean()), "most", rounded(negative.max())
    )
    one = found[layer]
    attends = [rounded(share) for share in one.attends[:, head]]
    print(f"layer {layer}, head {head}: effect", rounded(one.effect[head]), "attends", attends)
    print("  below 0: sum", rounded(one.negative[head]), "map", rounded(one.map_negative[head]))
    drawn = one.map[0, head]
    for place in drawn.abs().flatten().topk(6).indices.tolist():
        query, key = divmod(place, len(tokens))
        entry, softmax = float(drawn[query, key]), float(one.softmax[0, head, query, key])
        pair = f"{tokens[query]!r} {query} → {tokens[key]!r} {key}"
        print(f"  {pair}: {entry:.3f}, softmax {softmax:.2g}")
    print("share below 0 of the map's rows:", {
        f"{tokens[i]!r} {i}": rounded((drawn[i, : i + 1] < 0).float().mean())
        for i in range(len(tokens) - 3, len(tokens))
    })  # fmt: skip
    for part, change in found.change.items():
        print("change by", part, [rounded(share) for share in change])


def rounded(value: Any) -> float:
    return round(float(value), 3)


def take_all(page_file: Path, layer: int, head: int, folder: Path) -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width in (WIDE, PHONE):
            page = browser.new_page(
                viewport={"width": width, "height": HIGH}, color_scheme="light",
                is_mobile=width == PHONE, has_touch=width == PHONE,
            )  # fmt: skip
            page.goto(page_file.resolve().as_uri())
            page.locator(f"#heads [data-layer='{layer}']").nth(head).click()
            page.wait_for_selector(f"#detail[data-shown$=' {layer} {head}']")
            page.evaluate("""() => {
                const { values, size } = view.pictures[1].matrix;
                const sizes = values.map(Math.abs);
                const most = sizes.indexOf(Math.max(...sizes));
                view.mark(Math.floor(most / size), most % size);
            }""")
            if width == WIDE:
                take(page, "main > h1", "#detail", folder / "explore-heads.png")
                take(page, "#detail", "#detail + h2", folder / "explore-head.png")
                take(page, "#detail + h2", None, folder / "explore-next.png")
            else:
                page.locator("#detail-pictures .readout").evaluate("one => one.scrollIntoView()")
                page.screenshot(path=folder / "explore-phone.png")
        browser.close()


def take(page: Page, top: str, bottom: str | None, picture: Path) -> None:
    """A picture of the page from one element down to another one, or to its end."""
    high = page.locator(top).evaluate("one => one.getBoundingClientRect().top + scrollY") - MARGIN
    end = page.locator(bottom or "main")
    side = "top" if bottom else "bottom"
    low = end.evaluate(f"one => one.getBoundingClientRect().{side} + scrollY")
    clip = {"x": 0, "y": high, "width": WIDE, "height": low - high}
    page.screenshot(path=picture, full_page=True, clip=clip)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
