"""doctor: what an installation will run where, and what is wrong with it, with the way out."""

import logging
from types import SimpleNamespace

import pytest
import torch

from vsa_compile.__main__ import main
from vsa_compile.ops.cpu import loader
from vsa_compile.tools import doctor


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_doctor_finds_nothing_wrong_here(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert f"torch               {torch.__version__}" in printed
    assert 'backend="vsa"       vsa_compile.backend:vsa' in printed
    assert f"CPU, 16 and 32 bit  C++ kernel for {loader.variants()[0]}\n" in printed
    assert "all tiles kept is dense attention within" in printed
    assert printed.endswith("problem: none\n")


def test_doctor_says_what_is_wrong_and_the_way_out(capsys, monkeypatch):
    monkeypatch.setattr(doctor.metadata, "entry_points", lambda group: [])
    monkeypatch.setattr(loader, "kernel", lambda variant: None)
    monkeypatch.setattr(doctor, "attention", lambda q, k, v, **_: torch.zeros_like(q))
    monkeypatch.setattr(doctor, "version", lambda package: None)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    problems = [line for line in printed.splitlines() if line.startswith("problem: ")]
    ways_out = (
        "pip install in its folder",
        "install a C++ compiler",
        "Reinstall torch",
    )
    for way_out in ways_out:
        assert any(way_out in problem for problem in problems), way_out


@pytest.mark.parametrize("gpu", [False, True])
def test_triton_is_missed_where_there_is_a_gpu(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(doctor.metadata, "packages_distributions", dict)
    findings = doctor._Findings()
    doctor._versions(findings)
    found = dict(findings.lines)["triton"]
    assert found == ("not installed" if gpu else "not installed; GPUs alone need it")
    assert [
        text for text in findings.problems if "pip install 'vsa-compile[gpu]'" in text
    ] == findings.problems
    assert len(findings.problems) == gpu


def test_triton_is_found_whichever_package_it_is_from(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "packages_distributions", lambda: {"triton": ["triton-rocm"]})
    monkeypatch.setattr(doctor, "version", lambda package: "3.7.1" if package == "triton-rocm" else None)
    assert doctor._triton() == "3.7.1 (triton-rocm)"


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_doctor_shows_which_kernel_the_environment_picks(capsys, monkeypatch):
    monkeypatch.setenv("VSA_COMPILE_CPU", "plain")
    assert main(["doctor"]) == 0
    faster = loader.variants()[0]
    assert f"C++ kernel for plain; VSA_COMPILE_CPU picks it, {faster} is faster" in capsys.readouterr().out
    monkeypatch.setenv("VSA_COMPILE_CPU", "avx3")
    assert main(["doctor"]) == 1
    assert "problem: the environment variable VSA_COMPILE_CPU is 'avx3'" in capsys.readouterr().out


def test_doctor_reports_an_operator_that_raises(capsys, monkeypatch):
    def broken(*_, **__):
        raise OSError("libtorch is not there")

    monkeypatch.setattr(doctor, "attention", broken)
    assert main(["doctor"]) == 1
    assert "problem: the test on CPU failed: OSError: libtorch is not there." in capsys.readouterr().out


def test_doctor_looks_at_every_gpu(monkeypatch):
    """Of a GPU that is not there: what is asked of torch, and what is said."""
    facts = SimpleNamespace(name="Fake", major=7, minor=0, total_memory=8 << 30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    monkeypatch.setattr(doctor, "_compare", lambda *_: None)
    findings = doctor._Findings()
    doctor._gpus(findings)
    lines = dict(findings.lines)
    assert lines["GPU 0"].startswith("Fake, compute capability 7.0, 8 GiB, driver ")
    assert lines["GPU 0, 16 and 32 bit"] == "ATen: the GPU is older than compute capability 8.0"
    assert not findings.problems


def test_a_template_that_a_gpu_does_not_use_is_a_problem(monkeypatch):
    facts = SimpleNamespace(name="Fake", major=9, minor=0, total_memory=8 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    why = "vsa_compile::attend runs through chunked ATen: the grid is odd"
    log = logging.getLogger("vsa_compile.gpu")
    monkeypatch.setattr(doctor, "_compare", lambda *_: log.info(why))
    findings = doctor._Findings()
    doctor._gpu(torch.device("cuda", 0), True, findings)
    assert dict(findings.lines)["GPU 0, 16 and 32 bit"] == "templates"
    assert findings.problems == [f"{why}. The GPU could run a template; please report this with "
                                 "TORCH_LOGS=+vsa_compile."]  # fmt: skip


def test_without_templates_the_kernels_are_plain_ones(monkeypatch):
    facts = SimpleNamespace(name="Fake", major=9, minor=0, total_memory=8 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(doctor, "_compare", lambda *_: None)
    findings = doctor._Findings()
    doctor._gpu(torch.device("cuda", 0), False, findings)
    found = dict(findings.lines)["GPU 0, 16 and 32 bit"]
    assert found == "plain Triton kernels: torch's template interface is unknown"


def test_an_incomplete_installation_is_a_problem(monkeypatch):
    def missing():
        raise FileNotFoundError("no kernel template")

    monkeypatch.setattr(doctor, "template_files", missing)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    findings = doctor._Findings()
    doctor._gpus(findings)
    assert findings.problems == ["no kernel template"]
