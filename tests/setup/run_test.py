"""./run with every tool it calls replaced by a stand-in: what it prints, where, and what it hands to the program."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOBODY = 65534

PROGRAM = r"""#!/bin/sh
printf '<%s>' "$@"
cat
exit "${PROGRAM_EXIT:-0}"
"""
# Everything is installed unless MISSING names a package.
DPKG_QUERY = r"""#!/bin/sh
shift 3
for package; do
  if [ "$package" = "$MISSING" ]; then echo "no packages found matching $package" >&2
  else echo "installed $package"; fi
done
"""
APT_GET = r"""#!/bin/sh
echo "apt-get $*" >>"$CALLS"
case $* in *install*) printf '%s\n' "$APT_SAYS"; exit "${APT_EXIT:-0}" ;; esac
"""
SUDO = r"""#!/bin/sh
echo "sudo $*" >>"$CALLS"
if [ "$SUDO_FAILS" ]; then echo 'sudo: a password is required' >&2; exit 1; fi
if [ "$1" != -v ]; then exec "$@"; fi
"""
CMAKE = r"""#!/bin/sh
echo "cmake $*" >>"$CALLS"
while [ $# -gt 0 ]; do case $1 in -S) source=$2 ;; -B) build=$2 ;; esac; shift; done
mkdir -p "$build"
echo "CMAKE_HOME_DIRECTORY:INTERNAL=$source" >"$build/CMakeCache.txt"
cp "$source/program" "$build/thermocline"
"""
NINJA = r"""#!/bin/sh
echo "ninja $*" >>"$CALLS"
cat >/dev/null
[ "$NINJA_SLEEP" ] && { echo begin >>"$CALLS"; sleep "$NINJA_SLEEP"; echo end >>"$CALLS"; }
echo "ninja: Entering directory \`x'"
echo "${NINJA_SAYS:-ninja: no work to do.}"
exit "${NINJA_EXIT:-0}"
"""


def write_executable(path, text):
    path.write_text(text)
    path.chmod(0o755)


class RunTest(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        top = pathlib.Path(temporary.name)
        top.chmod(0o755)
        self.tree = top / "a tree"
        self.tools = top / "tools"
        self.calls = top / "calls"
        self.tree.mkdir()
        self.tools.mkdir()
        self.calls.touch()
        for name in ("run", "requirements.txt", "CMakePresets.json"):
            shutil.copy2(ROOT / name, self.tree / name)
        write_executable(self.tree / "program", PROGRAM)
        for name, text in {"dpkg-query": DPKG_QUERY, "apt-get": APT_GET, "sudo": SUDO, "cmake": CMAKE,
                           "ninja": NINJA}.items():
            write_executable(self.tools / name, text)
        # oneDNN is there already, by ./run's own record of it.
        (self.tree / ".venv" / "lib").mkdir(parents=True)
        (self.tree / ".venv" / "lib" / "libdnnl.so.3").touch()
        python = os.path.realpath("/usr/bin/python3")
        requirements = (self.tree / "requirements.txt").read_text().rstrip("\n")
        (self.tree / ".venv" / ".complete").write_text(f"{python} {requirements}")

    def environment(self, variables):
        return {"PATH": f"{self.tools}:/usr/bin:/bin", "CALLS": str(self.calls), **variables}

    def run_it(self, *words, script=None, stdin="", cwd="/", as_nobody=False, **variables):
        command = [str(script or self.tree / "run"), *words]
        if as_nobody and os.geteuid() == 0:
            for path in (self.tree, *self.tree.rglob("*"), self.calls):
                os.chown(path, NOBODY, NOBODY)
            command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=cwd, timeout=60,
                              env=self.environment(variables))

    def calls_of(self, tool):
        return [line for line in self.calls.read_text().splitlines() if line.startswith(tool + " ")]

    def assert_one_line(self, result, *parts):
        self.assertEqual(result.returncode, 1, result)
        self.assertEqual(result.stdout, "")
        last = result.stderr.splitlines()[-1]
        self.assertTrue(last.startswith("run: "), last)
        for part in parts:
            self.assertIn(part, last)

    def test_hands_over_words_input_and_exit_code(self):
        result = self.run_it("chat", "-p", "two words", "", stdin="from a pipe\n", PROGRAM_EXIT="7")
        self.assertEqual(result.stdout, "<chat><-p><two words><>from a pipe\n")
        self.assertEqual(result.returncode, 7)

    def test_is_silent_and_quick_when_nothing_is_missing(self):
        self.run_it("chat")
        self.calls.write_text("")
        begin = time.monotonic()
        result = self.run_it("chat")
        self.assertLess(time.monotonic() - begin, 1.0)
        self.assertEqual(result.stderr, "")
        self.assertEqual(len(self.calls_of("ninja")), 1, "ninja always runs")
        for tool in ("cmake", "apt-get", "sudo"):
            self.assertEqual(self.calls_of(tool), [])

    def test_works_through_a_symlink_from_another_folder(self):
        link = self.tools / "thermo link"
        link.symlink_to(self.tree / "run")
        result = self.run_it("inspect", "x.gguf", script=link, cwd=self.tools)
        self.assertEqual((result.stdout, result.returncode), ("<inspect><x.gguf>", 0), result.stderr)

    def test_build_stops_before_the_program(self):
        result = self.run_it("build")
        self.assertEqual((result.stdout, result.returncode), ("", 0), result.stderr)

    def test_a_failed_build_is_shown_and_fails(self):
        result = self.run_it("chat", NINJA_SAYS="a.cc:1: error: no", NINJA_EXIT="1")
        self.assertIn("a.cc:1: error: no", result.stderr)
        self.assert_one_line(result, "the build failed")

    def test_names_packages_before_asking_for_sudo(self):
        result = self.run_it("chat", as_nobody=True, MISSING="libedit-dev")
        self.assertEqual(result.returncode, 0, result)
        self.assertIn("installing the Debian packages libedit-dev", result.stderr)
        self.assertEqual(self.calls_of("sudo")[0], "sudo -v")
        self.assertIn("libedit-dev", self.calls_of("apt-get")[-1])

    @unittest.skipUnless(os.geteuid() == 0, "needs root")
    def test_root_needs_no_sudo(self):
        self.assertEqual(self.run_it("chat", MISSING="cmake").returncode, 0)
        self.assertEqual(self.calls_of("sudo"), [])
        self.assertIn("cmake", self.calls_of("apt-get")[-1])

    def test_says_when_there_are_no_rights(self):
        result = self.run_it("chat", as_nobody=True, MISSING="cmake", SUDO_FAILS="1")
        self.assert_one_line(result, "no rights", "apt-get install", "cmake")

    def test_says_when_there_is_no_network(self):
        result = self.run_it("chat", MISSING="cmake", APT_SAYS="W: Failed to fetch: Temporary failure resolving 'deb'",
                             APT_EXIT="100")
        self.assert_one_line(result, "no network")

    def test_says_when_the_disk_is_full(self):
        result = self.run_it("chat", MISSING="cmake", APT_SAYS="dpkg: error: No space left on device", APT_EXIT="100")
        self.assert_one_line(result, "disk is full")

    def test_says_when_the_folder_is_not_ours(self):
        shutil.rmtree(self.tree / "build", ignore_errors=True)
        (self.tree / "build").write_text("in the way")
        self.assert_one_line(self.run_it("chat"), "cannot write", "build")

    def test_names_another_system(self):
        self.tools.joinpath("uname").write_text("#!/bin/sh\necho Darwin arm64\n")
        self.tools.joinpath("uname").chmod(0o755)
        self.assert_one_line(self.run_it("chat"), "Linux x86-64 only", "Darwin arm64")

    def test_a_moved_tree_is_configured_afresh(self):
        self.run_it("build")
        moved = self.tree.with_name("moved tree")
        self.tree.rename(moved)
        self.calls.write_text("")
        result = self.run_it("chat", script=moved / "run")
        self.assertEqual((result.stdout, result.returncode), ("<chat>", 0), result.stderr)
        self.assertEqual(len(self.calls_of("cmake")), 1)

    def test_two_at_once_take_turns(self):
        environment = self.environment({"NINJA_SLEEP": "0.5"})
        both = [subprocess.Popen([str(self.tree / "run"), "chat"], env=environment, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        results = [process.communicate(timeout=60) for process in both]
        self.assertEqual([out for out, _ in results], ["<chat>"] * 2)
        self.assertIn("waiting for another ./run", results[0][1] + results[1][1])
        turns = [line for line in self.calls.read_text().splitlines() if line in ("begin", "end")]
        self.assertEqual(turns, ["begin", "end"] * 2)


if __name__ == "__main__":
    unittest.main()
