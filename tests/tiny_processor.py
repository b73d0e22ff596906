"""The tiny bundle's ``processor/``: a token per byte, pictures of 8 x 8 pixels, four tokens."""

import json
from pathlib import Path

SIDE, IMAGE_TOKENS = 8, 4
IMAGE, END, START = 256, 257, 258
VOCAB = 260
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}:{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for p in m.content %}{% if p.type == 'image' %}<image>"
    "{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def write_processor(folder: Path) -> None:
    """Lays the four files in ``folder/processor``."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True) for text in ("<image>", "<end>", "<start>", "<pad>")]
    )
    (folder / "processor/tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    (folder / "processor/chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    prompt = {
        "image_token": "<image>",
        "image_token_id": IMAGE,
        "chat_template": "processor/chat_template.jinja",
        "plain_image": "<image>\n",
        "special_tokens": {"bos_token": "<start>", "eos_token": "<end>"},
        "vocab_size": VOCAB,
    }
    images = {
        "geometry": "fixed",
        "options": {
            "tokens": IMAGE_TOKENS,
            "on_white": False,
            "square": None,
            "resize": {"height": SIDE, "width": SIDE},
            "resample": "bilinear",
            "crop": None,
            "values": {"rescale": 1 / 255, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
            "pad": None,
        },
    }
    for name, value in {"prompt": prompt, "images": images}.items():
        (folder / f"processor/{name}.json").write_text(json.dumps(value), encoding="utf-8")
