"""What `make lab` tells Jupyter's server: a notebook that is opened and saved, but not run, differs in nothing."""

import warnings

c = get_config()  # noqa: F821 - Jupyter defines it where it reads this file


def forget_the_kernel(model: dict, **_) -> None:
    """Keep of a notebook's kernel what is published, and not this machine's version of Python.

    JupyterLab writes both into every notebook that it opens, and saves it after two minutes without being asked.
    """
    content = model.get("content") if model["type"] == "notebook" else None
    if content and content["metadata"].get("kernelspec", {}).get("name") == "python3":
        content["metadata"]["kernelspec"]["display_name"] = "Python 3"
        content["metadata"]["language_info"] = {"name": "python"}


warnings.filterwarnings("ignore", "Overriding existing pre_save_hook")  # the server checks the same one twice
c.ContentsManager.pre_save_hook = forget_the_kernel
