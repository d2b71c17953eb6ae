"""Varied strings from a seed: every plane of Unicode, scripts, code, numbers, white space, emoji, combining marks,
control characters, what looks like special tokens, and mixtures."""
import random

SCRIPTS = [
    (0x41, 0x5B), (0x61, 0x7B), (0xC0, 0x180), (0x370, 0x400), (0x400, 0x500), (0x531, 0x557), (0x5D0, 0x5EB),
    (0x620, 0x650), (0x904, 0x940), (0x985, 0x9C0), (0xE01, 0xE3B), (0xE81, 0xEB0), (0x10A0, 0x1100), (0x1100, 0x1200),
    (0x1200, 0x1380), (0x13A0, 0x1400), (0x1780, 0x17D0), (0x1E00, 0x2000), (0x3041, 0x3097), (0x30A1, 0x30FB),
    (0x3105, 0x3130), (0x4E00, 0xA000), (0x3400, 0x4DC0), (0xA000, 0xA48D), (0xAC00, 0xD7A4), (0xFB50, 0xFDC0),
    (0xFF01, 0xFF5F), (0x10330, 0x1034B), (0x12000, 0x12100), (0x1D400, 0x1D800), (0x1E900, 0x1E944), (0x20000, 0x20100),
    (0x2EBF0, 0x2EE5E), (0x31350, 0x323B0), (0x13460, 0x143FB), (0x10D40, 0x10D66),
]
NUMBERS = [(0x30, 0x3A), (0x660, 0x66A), (0x966, 0x970), (0xB2, 0xB4), (0xBC, 0xBF), (0x2070, 0x208A), (0x2150, 0x2189),
           (0x2460, 0x2480), (0x3220, 0x322A), (0xFF10, 0xFF1A), (0x1D7CE, 0x1D800), (0x10107, 0x10134), (0x1CCF0, 0x1CCFA)]
MARKS = [(0x300, 0x370), (0x483, 0x48A), (0x591, 0x5BE), (0x64B, 0x660), (0x93A, 0x950), (0xE31, 0xE3B), (0x1AB0, 0x1ACF),
         (0x20D0, 0x20F1), (0x3099, 0x309B), (0xFE00, 0xFE10), (0xFE20, 0xFE30), (0xE0100, 0xE01F0)]
SPACES = [" "] * 12 + list("\t\t\n\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2000\u2003\u2009\u200a\u200b\u2028\u2029"
                           "\u202f\u205f\u2060\u3000\ufeff") + ["\r\n", "\n\n", "  ", "    ", "\t\t"]
WORDS = """the of and to in I'm I'll you've we're it's don't they'd he'S IT'S can't rock'n'roll ain't O'Brien 'tis 's 'll 've
The Quick BROWN fox jumps over lazy dogs iPhone GPT-4 e.g. i.e. etc... naïve café Straße Übermut señor œuvre Ångström
don\u2019t it\u2019s \u201cquoted\u201d \u2014 \u2026 \u00ab oui \u00bb hello world Hello World tokenization antidisestablishmentarianism
https://example.org/a?b=c&d=%20 me@example.org C++ C# .NET node.js 3rd 1st 2nd x86_64 v1.2.3 $9.99 50% #tag @you""".split()
CODE = ["def f(x):\n    return x**2\n", "for (int i = 0; i < n; ++i) {", "}\n\n", "std::vector<int> v{1,2};", "#include <x>\n",
        "\tif (a && b) return;", "<div class=\"a\">", "</div>", "<table><tr><td>", "</td>", "<h1>", "<br/>", "SELECT * FROM t;",
        "x = {'a': [1, 2.5e-3], \"b\": None}", "// \u2581 comment", "0xDEADBEEF", "\\n\\t\\x00", "a->b", "!=", "===", "<<<<<<< HEAD",
        "```python\n", "```", "        ", "\\u00e9", "&amp;", "#!/bin/sh", "$(ls -la | grep x)", "lambda x: x", "__init__", "()=>{}"]
EMOJI = ["\U0001F600", "\U0001F44D\U0001F3FD", "\U0001F468\u200D\U0001F469\u200D\U0001F467\u200D\U0001F466", "\U0001F1E9\U0001F1EA",
         "\u2764\ufe0f", "\u2764\ufe0f\u200d\U0001F525", "\U0001F3F4\U000E0067\U000E0062\U000E0065\U000E006E\U000E0067\U000E007F",
         "\U0001F9D1\U0001F3FB\u200D\U0001F680", "1\ufe0f\u20e3", "\u2705", "\U0001F636\u200D\U0001F32B\ufe0f", "\u00a9", "\u2122",
         "\U0001FAE8", "\U0001F3F3\ufe0f\u200D\U0001F308", "\u200d", "\ufe0f", "\U0001F1E9"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_start|>user\n", "<|im_end|>\n", "<repo_name>", "<file_sep>",
           "<jupyter_code>", "<empty_output>", "<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "[multimodal]", "<unused0>", "<unused6241>",
           "<start_of_turn>model\n", "<end_of_turn>", "<start_of_image>", "<0x41>", "<0x0A>", "<0xff>", "\u2581", "\u2581\u2581",
           "\u0120", "\u0120the", "\u010a", "<s>", "</s>", "[INST]", "<|im_end|", "<|im_", "|im_end|>", "<<|im_end|>>", "< |im_end|>",
           "<start_of_turn", "<unused", "<unused99999>", "<bos", "<|IM_END|>", "<table>", "</strong>", "<strong", "> </", ">\u2581</",
           "<pad><pad>", "\n<end_of_turn>\n"]
ODD = ["\ufffd", "\ufffd\ufffd", "\ufffe", "\uffff", "\U0010FFFF", "\U0001FFFE", "\u00c3\u00a9", "\u00e2\u20ac\u2122", "\x80", "\x9f", "\x7f",
       "\x00", "\x01\x02", "\x04", "\x1b[31m", "\u202e", "\u2066", "\ue000", "\uf8ff", "\U000F0000", "\U00040000", "\U00090000", "\u0378"]


def one_of(r, ranges):
    begin, end = r.choice(ranges)
    return chr(r.randrange(begin, end))


def any_char(r):
    while True:
        code = r.randrange(0x110000) if r.random() < 0.5 else r.randrange(0x3000) if r.random() < 0.7 else r.randrange(0x20000)
        if not 0xD800 <= code < 0xE000:
            return chr(code)


def script_word(r):
    begin, end = r.choice(SCRIPTS)
    return "".join(chr(r.randrange(begin, end)) for _ in range(r.randint(1, 7)))


def marked(r):
    return "".join(one_of(r, SCRIPTS[:10]) + "".join(one_of(r, MARKS) for _ in range(r.randint(0, 3))) for _ in range(r.randint(1, 4)))


def number(r):
    if r.random() < 0.4:
        return "".join(one_of(r, NUMBERS) for _ in range(r.randint(1, 6)))
    return r.choice([str(r.randrange(10 ** r.randint(1, 12))), f"{r.random() * 1000:.3f}", f"{r.randrange(10**7):,}",
                     f"-{r.randrange(100)}e{r.randrange(20)}", f"{r.randrange(24)}:{r.randrange(60):02}", f"{r.randrange(256):08b}"])


def sentence(r):
    return " ".join(r.choice(WORDS) for _ in range(r.randint(1, 5))) + r.choice(["", ".", "!", "?\n", " ", ", ", ";", ":"])


PARTS = [
    lambda r: "".join(any_char(r) for _ in range(r.randint(1, 5))),
    script_word, script_word,
    marked, number, number, sentence, sentence, sentence,
    lambda r: r.choice(CODE), lambda r: r.choice(CODE),
    lambda r: "".join(r.choice(SPACES) for _ in range(r.randint(1, 6))),
    lambda r: r.choice(" \n\t") * r.choice([1, 2, 3, 4, 7, 8, 15, 16, 17, 30, 31, 32, 33, 40]),
    lambda r: "".join(r.choice(EMOJI) for _ in range(r.randint(1, 2))),
    lambda r: r.choice(SPECIAL), lambda r: r.choice(SPECIAL),
    lambda r: r.choice(ODD),
    lambda r: (r.choice("aeoxAX09=-_*#.!<>/\\ \n\u4e2d\u3042") if r.random() < 0.8 else any_char(r)) * r.randint(2, 24),
    lambda r: "".join(chr(r.randrange(0x20, 0x7F)) for _ in range(r.randint(1, 10))),
    lambda r: "".join(chr(r.randrange(0x20)) for _ in range(r.randint(1, 3))),
]


def strings(n, seed):
    r = random.Random(seed)
    return ["".join(r.choice(PARTS)(r) for _ in range(r.choice([1, 1, 2, 2, 3, 4]))) for _ in range(n)]
