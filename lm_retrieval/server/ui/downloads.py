"""Buttons that save what a part of the page has made; the browser writes the file, the server keeps none."""

from collections.abc import Callable
from typing import Any

import gradio as gr

_SAVE = """(file) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([file.content], {type: "text/plain;charset=utf-8"}));
    link.download = file.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}"""


def download_buttons(name: str, kinds: dict[str, str], contents: Callable[[Any], dict[str, str]], source: Any) -> None:
    """A row of buttons that save `lmr-NAME.KIND`.

    Args:
        name: part of the file name.
        kinds: label of each button by file ending.
        contents: makes the files by ending from the value of `source`.
        source: the component that holds what is saved.
    """
    file = gr.JSON(visible=False)
    for kind, label in kinds.items():

        def make(value: Any, kind: str = kind) -> dict[str, str]:
            if not value:
                raise gr.Error("There is nothing to save yet.")
            return {"name": f"lmr-{name}.{kind}", "content": contents(value)[kind]}

        button = gr.Button(f"↓ {label}", size="sm", min_width=60)
        saved = button.click(make, source, file, api_visibility="private", show_progress="hidden")
        saved.success(None, file, None, js=_SAVE, api_visibility="private")
