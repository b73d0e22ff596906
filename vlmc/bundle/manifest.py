"""What a bundle says of itself: the one contract between compiler and runtime."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from vlmc.schema import Frozen, Json, Split

SCHEMA_VERSION: Literal[1] = 1

ElementType = Literal["int64", "int32", "bool", "uint8", "int8", "float16", "float32"]
TokenIds = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TensorSpec(Frozen):
    """One input or output of a program; a dimension is a size or the name of a free one."""

    name: str
    dtype: ElementType
    shape: tuple[int | str, ...]


class ProgramSpec(Frozen):
    """One ONNX program; every path is relative to the bundle's folder.

    ``kernels`` is the same program for vlmc's own CPU kernels: same inputs, outputs and weights.
    It is opened where they serve, ``file`` elsewhere.
    """

    file: str
    kernels: str | None = None
    weights: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def present_name(features: str) -> str:
    """What the single split calls the features it made: an output cannot have an input's name."""
    return f"present_{features.removeprefix('image_')}"


class Limits(Frozen):
    """The envelope the bundle was compiled for; requests outside it are refused."""

    prefill_seq_len: PositiveInt
    ctx_len: PositiveInt
    batch_size: PositiveInt
    max_images: NonNegativeInt


class ImageSpec(Frozen):
    """``processor/images.json``: how a picture becomes the vision program's inputs.

    ``geometry`` is a row of ``vlmc.runtime.images.GEOMETRIES``; ``options`` are its constants.
    """

    geometry: str
    options: Json


class ImageLayout(Frozen):
    """The text that an image becomes, where that is more than its image tokens.

    ``start``; every tile as ``tile``, its image tokens and ``tile_end``, with ``row_end`` after a
    row of tiles; ``before_whole`` where there are tiles; ``whole``, the image tokens of the whole
    picture, and ``end``. ``tile`` knows ``{row}``, ``{column}`` and ``{number}``, from 1. With
    ``after_whole`` the whole comes first, then that, and the tiles, where there are any. ``close``
    stands behind it all. Where there are no tiles, the whole may stand between ``alone`` and
    ``alone_end`` instead. Two ``edge`` in a row become one, and a space parts it from a word. Tiles
    of the first ``first_rows`` rows end with ``first_end``, and ``after_first`` follows them.
    ``numbered`` comes before all; it knows ``{index}``, the picture's in its prompt, from 0.
    """

    placeholder: str | None = None  # what the template writes; None: the image token
    numbered: str = ""
    start: str = ""
    tile: str = ""
    tile_end: str = ""
    between: str = ""  # two tiles of a row
    row_end: str = ""
    between_rows: str = ""
    before_whole: str = ""
    whole: str = ""
    end: str = ""
    after_whole: str | None = None
    close: str = ""
    alone: str | None = None
    alone_end: str = ""
    edge: str = ""
    first_rows: NonNegativeInt = 0
    first_end: str = ""
    after_first: str = ""

    def texts(self) -> dict[str, str]:
        """Its texts by name."""
        return {k: v for k, v in self.model_dump().items() if isinstance(v, str)}


class PromptFrame(Frozen):
    """Text a processor adds to every prompt, rendered or not; it takes no prompt without image.

    Attributes:
        after_images: Stands behind the last image.
        end: Stands at the end.
    """

    after_images: str
    end: str


class VisionText(Frozen):
    """The prompt's text as the vision program reads it, with every image of the prompt.

    Attributes:
        tokenizer: ``processor/NAME.json``; it comes from the checkpoint's folder ``NAME``.
        input: The vision program's input int64 ``[1, tokens]`` of the ids.
        most: Tokens that may be.
    """

    tokenizer: str
    input: str
    most: PositiveInt


class PictureAhead(Frozen):
    """A prompt's one picture, written ahead of all its text and encoded apart from it.

    Attributes:
        image: The token of every feature row; it and the other words may be plain words of the
            vocabulary.
        row_end: Behind each row of feature rows.
        end: Behind the picture.
        text_end: Behind the text; a prompt without a picture has none of all this.
    """

    image: str
    row_end: str
    end: str
    text_end: str


class PromptSpec(Frozen):
    """``processor/prompt.json``: how messages become token ids."""

    image_token: str
    image_token_id: int
    chat_template: str | None  # path in the bundle; None: the plain format below
    plain_image: str  # what one image becomes in the plain format, e.g. "<image>\n"
    special_tokens: dict[str, str | list[str]]  # bos_token, eos_token, ...: template variables
    vocab_size: int
    add_special_tokens: bool = True  # the tokenizer's, where the template has written none
    image_prefix: tuple[str, ...] = ()  # tokens around an image's placeholders that the template
    image_suffix: tuple[str, ...] = ()  # does not write
    clean_up_tokenization_spaces: bool = False  # transformers' flag, when texts are decoded
    image_layout: ImageLayout | None = None  # None: an image is its image tokens alone
    frame: PromptFrame | None = None  # None: the tokenizer adds what it adds to any text
    ahead: PictureAhead | None = None  # None: a picture stands where the template says
    opening: str = ""  # stands before the rendered prompt, whatever the template
    # Tokens that have rows among an image's features too, wherever they stand in a prompt that
    # shows one: behind its others, in this order.
    mark_token_ids: tuple[int, ...] = ()
    # Tokens that are images' to the decoder, though they have embeddings of their own.
    beside_token_ids: tuple[int, ...] = ()
    # An image's tokens stand before all others, the tokenizer's own too, and the text has no place
    # for it; there is no prompt without an image.
    leading_images: bool = False
    # With it: what the image is in the text instead, before the rest, whose spaces at both ends go.
    leading_text: str | None = None
    first_image_id: int | None = None  # an image's tokens count up from here; None: all are alike
    vision_text: VisionText | None = None  # with ``leading_images``; None: images are read alone
    opening_once: bool = False  # unless that begins with it
    closing: str = ""  # stands behind it


class PositionSpec(Frozen):
    """``scheme`` is a row of ``vlmc.runtime.positions.POSITIONS``."""

    scheme: str
    options: Json = Field(default_factory=dict)


class MaskSpec(Frozen):
    """Which tokens the layers of one kind attend to.

    A token sees itself and those before it: no further back than ``window`` tokens, none beyond
    its chunk, where ``chunk`` tokens each share one. It also sees all of its span, and from it no
    further back than the window with ``window_in_spans``. Answer tokens are in no span.

    Attributes:
        layers: The kind, as ``layer_types`` of transformers' configuration has it; None: all.
        input: The program's input ``[B, 1, S, T]`` that is added to the scores; empty where
            spans and chunks change nothing. None where there are neither.
        spans: Each run of image tokens; or the whole prompt; or the images ``together`` as one,
            each with its marks, and no text between them.
        marks: Tokens before and after an image's own, for ``together``.
        window: Tokens, itself counted.
        window_in_spans: See above.
        chunk: Tokens.
    """

    layers: str | None = None
    input: str | None = None
    spans: Literal["images", "prompt", "together"] | None = None
    marks: tuple[NonNegativeInt, NonNegativeInt] = (0, 0)
    window: PositiveInt | None = None
    window_in_spans: bool = True
    chunk: PositiveInt | None = None


class LogitsSpec(Frozen):
    """What is done to every token's logits, sampled or not; by default nothing.

    The keys are those of transformers' generation configuration, and so is their meaning.
    """

    repetition_penalty: PositiveFloat = 1.0
    no_repeat_ngram_size: NonNegativeInt = 0
    bad_words_ids: tuple[TokenIds, ...] = ()
    sequence_bias: tuple[tuple[TokenIds, float], ...] = ()
    min_length: NonNegativeInt = 0  # with the prompt's tokens
    min_new_tokens: NonNegativeInt | None = None  # in its stead
    forced_eos_token_ids: tuple[NonNegativeInt, ...] = ()  # the last token that may be is of these
    suppress_tokens: tuple[NonNegativeInt, ...] = ()
    begin_suppress_tokens: tuple[NonNegativeInt, ...] = ()


class GenerationSpec(Frozen):
    """How answers are generated.

    Attributes:
        eos_token_ids: End tokens.
        suggested: Sampling values of the model's authors, used when asked for.
        logits: What they have done to logits in any case.
        left_out: What else they set that would change transformers' greedy answers, and is not
            followed.
    """

    eos_token_ids: tuple[int, ...]
    suggested: Json = Field(default_factory=dict)
    logits: LogitsSpec = LogitsSpec()
    left_out: Json = Field(default_factory=dict)


class Source(Frozen):
    """Where the weights came from; local folders are known by content, never by path."""

    model: str
    revision: str | None
    files: dict[str, Sha256]


class FileEntry(Frozen):
    """Digest and size in bytes of one file of the bundle."""

    sha256: Sha256
    size: int


class Manifest(Frozen):
    """``manifest.json``.

    ``digest`` is the sha256 over the sorted lines ``<sha256>  <path>`` of ``files`` and the
    canonical JSON of everything else here; ``version`` is its first 12 digits.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    version: str
    digest: Sha256
    family: str
    split: Split
    programs: dict[str, ProgramSpec]  # dual: vision, language; single: model
    limits: Limits
    positions: PositionSpec
    masks: tuple[MaskSpec, ...] = ()  # of the decoder's layers; none: causal, as the graph has it
    generation: GenerationSpec
    backend: str
    target: Json  # machine-specific choices, recorded as such
    source: Source
    recipe: Json  # as resolved
    tools: dict[str, str]
    files: dict[str, FileEntry]
