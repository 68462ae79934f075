"""The import hook in real interpreters: acts on ``vlmeval.config`` alone, can be turned off, breaks nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakehost import ROOT, STUB_BENCHMARK, make_host, output, run

NAME = "host_7b_trunc_l1_k2"
FOUND = f"import vlmeval.config as c; print({NAME!r} in c.supported_VLM)"


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> Path:
    return make_host(tmp_path_factory.mktemp("host"))


def test_variants_are_absent_present_absent(host):
    assert output(FOUND, host, REDREL_DISABLE="1") == "False"
    assert output(FOUND, host) == "True"
    assert output(FOUND, host, REDREL_DISABLE="1") == "False"


@pytest.mark.parametrize("value", ["", "0"])
def test_only_a_set_variable_disables(host, value):
    assert output(FOUND, host, REDREL_DISABLE=value) == "True"


def test_runner_started_with_m_and_isolated_mode(host):
    done = run("-m", "vlmeval", NAME, host=host)
    assert done.stdout == f"{NAME} True\n"
    isolated = f"import sys; sys.path.insert(0, {str(host)!r}); {FOUND}"
    assert run("-I", "-c", STUB_BENCHMARK + isolated, host=None).stdout.strip() == "True"


def test_every_user_of_the_table_sees_the_same_one(host):
    code = "import vlmeval.config as c, vlmeval.tools as t; print(c.supported_VLM is t.supported_VLM is t.cli())"
    assert output(code, host) == "True"


def test_host_module_keeps_its_own_loader(host):
    code = """
import inspect, importlib, vlmeval.config as c
print(type(c.__loader__).__name__, type(c.__spec__.loader).__name__, "supported_VLM" in inspect.getsource(c))
c = importlib.reload(c)
print("host_7b_trunc_l1_k2" in c.supported_VLM, type(c.supported_VLM).__name__)
"""
    assert output(code, host).split() == ["SourceFileLoader", "SourceFileLoader", "True", "True", "VariantTable"]


def test_dataset_and_model_classes_are_found_and_added_once(host):
    code = """
import vlmeval.config as c, vlmeval.vlm as vlm, vlmeval.dataset as d
from redrel_vlmeval.plugin import attach
table, finder = c.supported_VLM, vlm.__getattr__
attach(c)
print(d.SUPPORTED_DATASETS, [x.__name__ for x in d.DATASET_CLASSES], d.RedRelShapes.__name__)
print(c.supported_VLM is table, vlm.__getattr__ is finder, hasattr(vlm, "Other"))
classes = types.ModuleType("redrel_vlmeval.models.variant")
classes.TruncatedVLM = dict
sys.modules[classes.__name__] = classes
print(vlm.TruncatedVLM)
"""
    lines = output(code, host).splitlines()
    both = ["RedRelShapes", "RedRelPairs"]
    assert lines == [f"{both} {both} RedRelShapes", "True True False", "<class 'dict'>"]


def test_a_hosts_own_getattr_still_answers(tmp_path):
    own = "import vlmeval.dataset\ndef __getattr__(name):\n    return 1 if name == 'Late' else missing(name)\n"
    own += "def missing(name):\n    raise AttributeError(name)\n"
    host = make_host(tmp_path)
    (host / "vlmeval/vlm/__init__.py").write_text(own)
    assert output("import vlmeval.vlm as v; print(v.Late, hasattr(v, 'Later'))", host) == "1 False"


def test_failing_registration_warns_in_one_line_and_leaves_the_host_working(tmp_path):
    host = make_host(tmp_path, config="other_name = 1\n", tools="cli = 0\n")
    done = run("-c", "import vlmeval.config as c; print(c.other_name)", host=host)
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert done.stderr.startswith("redrel-vlmeval: ") and done.stderr.count("\n") == 1
    assert "supported_VLM" in done.stderr and "REDREL_DISABLE=1" in done.stderr


@pytest.mark.parametrize("stream", ["/dev/full", "closed", "pipe", "None", "closed later", "no writer", "memory"])
def test_a_stderr_that_cannot_be_written_to_does_not_stop_the_host(tmp_path, stream):
    host = make_host(tmp_path, config="other_name = 1\n", tools="cli = 0\n")
    before = {
        "None": "sys.stderr = None",
        "closed later": "sys.stderr.close()",
        "no writer": "sys.stderr = type('None', (), {'flush': lambda self: None})()",
        "memory": "import io; sys.stderr = io.StringIO()",
    }.get(stream, "pass")
    code = f"import sys; {before}; import vlmeval.config as c; print(c.other_name)"
    after = "; assert sys.stderr.getvalue().startswith('redrel-vlmeval: ')" if stream == "memory" else ""
    redirected = {"/dev/full": "2>/dev/full", "closed": "2>&-", "pipe": "2> >(exec 0<&-; sleep 1)"}.get(stream, "")
    command = f'sleep 0.2; exec "$0" -c "$1" {redirected}'
    env = os.environ | {"PYTHONPATH": f"{host}{os.pathsep}{ROOT}"}
    env.pop("REDREL_DISABLE", None)
    command = ["bash", "-c", command, sys.executable, code + after]
    done = subprocess.run(command, env=env, cwd=host, stdout=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "1\n")


@pytest.mark.parametrize("trouble", ["SystemExit(3)", "RuntimeError('\\udc80')", "Silent()"])
def test_no_kind_of_failure_of_ours_is_the_hosts(tmp_path, trouble):
    code = f"""
import sys
class Silent(Exception):
    def __str__(self): raise ValueError("no words")
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "redrel_vlmeval.plugin":
            raise {trouble}
sys.meta_path.insert(0, Finder())
import vlmeval.config as c
print(sorted(c.supported_VLM))
"""
    done = run("-c", code, host=None, PYTHONPATH=f"{make_host(tmp_path)}{os.pathsep}{ROOT}")
    assert (done.returncode, done.stdout) == (0, "['host_7b']\n")


def test_missing_package_behind_the_hook_warns_only(host):
    code = "import sys; sys.modules['redrel_vlmeval'] = None\n"
    code += "import vlmeval.config as c; print(sorted(c.supported_VLM))"
    done = run("-c", code, host=host)
    assert (done.returncode, done.stdout) == (0, "['host_7b']\n")
    assert done.stderr.count("\n") == 1 and "redrel_vlmeval" in done.stderr


def test_the_hosts_own_errors_pass_unchanged(tmp_path):
    host = make_host(tmp_path, config="raise OSError('host trouble')\n")
    done = run("-c", "import vlmeval.config", host=host)
    assert done.returncode == 1 and done.stderr.endswith("OSError: host trouble\n")
    assert "redrel-vlmeval:" not in done.stderr


def test_spawned_processes_register_too(tmp_path):
    host = make_host(tmp_path)
    script = tmp_path / "spawn.py"
    script.write_text(
        "import multiprocessing as mp\n"
        f"def found(name):\n{STUB_BENCHMARK.replace(chr(10), chr(10) + '    ')}\n"
        "    import vlmeval.config as c\n    return name in c.supported_VLM\n"
        "if __name__ == '__main__':\n"
        "    with mp.get_context('spawn').Pool(1) as pool:\n"
        f"        print(pool.map(found, [{NAME!r}, 'host_8b']))\n"
    )
    done = run(str(script), host=host)
    assert (done.stdout, done.stderr) == ("[True, False]\n", "")


def test_package_and_hook_import_nothing_heavy(host):
    code = "import sys, redrel_vlmeval; t = redrel_vlmeval.register({'a': dict}); print('a_trunc_l1_k2' in t)\n"
    code += "print([m for m in ('torch', 'vlmeval', 'transformers', 'numpy', 'pandas') if m in sys.modules])"
    assert output(code, host).splitlines() == ["True", "[]"]


def test_hook_module_imports_only_sys_and_os():
    code = (
        "import sys, os; before = set(sys.modules); import _redrel_vlmeval_hook as h; h.install(); h.install()\n"
        "print(sorted(set(sys.modules) - before), [type(f).__name__ for f in sys.meta_path].count('VariantFinder'))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("['_redrel_vlmeval_hook'] 1\n", "")


def test_finder_answers_for_no_other_module(host):
    code = """
import _redrel_vlmeval_hook as h
finder = next(f for f in sys.meta_path if isinstance(f, h.VariantFinder))
print(sys.meta_path.index(finder), *map(finder.find_spec, ["vlmeval", "vlmeval.configs", "config"]))
"""
    assert output(code, host) == "0 None None None"


def test_run_registers_without_the_hook(host):
    code = f"from redrel_vlmeval.host.runner import run; run([{NAME!r}])"
    assert output(code, host, REDREL_DISABLE="1") == f"{NAME} True"


def test_run_uses_a_checkouts_own_runner_and_restores_the_process(tmp_path):
    checkout = make_host(tmp_path / "checkout")
    (checkout / "run.py").write_text(
        "import sys, vlmeval.config as c\nprint(__name__, sys.argv[1:], c.__file__)\n"
        f"print({NAME!r} in c.supported_VLM)\n"
    )
    for runner in (checkout, checkout / "run.py"):
        code = f"""
from redrel_vlmeval.host.runner import run
before = sys.argv, sys.path[:]
run(["--model", "x"], {str(runner)!r})
print(before == (sys.argv, sys.path))
"""
        lines = output(code, None, REDREL_DISABLE="1").splitlines()
        assert lines == [f"__main__ ['--model', 'x'] {checkout / 'vlmeval/config.py'}", "True", "True"]


def test_run_falls_back_to_the_run_py_beside_an_editable_checkout(tmp_path):
    checkout = make_host(tmp_path)
    (checkout / "vlmeval/__main__.py").unlink()
    code = "from redrel_vlmeval.host.runner import run, HostMissing\n"
    code += "try:\n    run(['a'])\nexcept HostMissing as e:\n    print(e)"
    assert "no __main__.py" in output(code, checkout)
    (checkout / "run.py").write_text("import sys; print('own runner', sys.argv[1:])")
    assert output(code, checkout) == "own runner ['a']"


def test_run_reports_failed_registration_as_an_error(tmp_path):
    host = make_host(tmp_path, config="other_name = 1\n", tools="cli = 0\n")
    done = run("-c", "from redrel_vlmeval.host.runner import run; run(['a'])", host=host, REDREL_DISABLE="1")
    assert done.returncode == 1 and "supported_VLM" in done.stderr.splitlines()[-1]


def test_the_command_that_starts_the_host(tmp_path, monkeypatch):
    from redrel_vlmeval.host import runner as hostrun

    (tmp_path / "run.py").touch()
    monkeypatch.setattr(hostrun, "_installed_script", lambda: None)
    monkeypatch.delenv("REDREL_DISABLE", raising=False)
    own = str(tmp_path / "run.py")
    assert hostrun.command(None)[1:] == ["-m", "vlmeval"] and hostrun.command(tmp_path)[1:] == [own]
    monkeypatch.setenv("REDREL_DISABLE", "1")
    assert hostrun.command(None)[1:] == ["-m", "redrel_vlmeval", "run"]
    assert hostrun.command(tmp_path)[1:] == ["-m", "redrel_vlmeval", "run", "--runner", own]
    with pytest.raises(hostrun.HostMissing, match="--runner .*nowhere: no such file"):
        hostrun.command(tmp_path / "nowhere")


def test_missing_host_or_runner_says_how_to_get_one(tmp_path, monkeypatch):
    from redrel_vlmeval.host import runner as hostrun

    with pytest.raises(hostrun.HostMissing, match=r"--runner .*nowhere: no such file.*\[ms\].*VLMEvalKit"):
        hostrun.run([], str(tmp_path / "nowhere"))
    monkeypatch.setattr(sys, "path", [str(ROOT)])
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if "editable" not in repr(f)])
    monkeypatch.delitem(sys.modules, "vlmeval", raising=False)
    with pytest.raises(hostrun.HostMissing, match=r"no package 'vlmeval'.*\[ms\].*VLMEvalKit"):
        hostrun.run([])
