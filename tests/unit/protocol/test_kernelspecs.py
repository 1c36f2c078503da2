"""From the kernel that a notebook names to one that the server has, in spaces and in Classic."""

from __future__ import annotations

import pytest

from airflow_provider_smstudio.studio.errors import KernelNotFoundError
from airflow_provider_smstudio.studio.protocol.kernelspecs import KernelSpecs, choose

SEP = "__SAGEMAKER_INTERNAL__"
HERE = "arn:aws:sagemaker:eu-west-1:470317259841:"
THERE = "arn:aws:sagemaker:us-east-1:081325390199:"
DATASCIENCE = f"python3{SEP}{HERE}image/datascience-1.0"
BASE = f"python3{SEP}{HERE}image/python-3.6"
CUSTOM_1 = f"python3{SEP}{HERE}image-version/mine/1"
CUSTOM_2 = f"python3{SEP}{HERE}image-version/mine/2"
DISTRIBUTION_1 = f"python3{SEP}{HERE}image/sagemaker-distribution-cpu{SEP}1.0.0"
DISTRIBUTION_2 = f"python3{SEP}{HERE}image/sagemaker-distribution-cpu{SEP}2.0.0"
R_HERE = f"ir{SEP}{HERE}image/r-image"
SPACE = ("python3", "glue_pyspark", "sparkkernel")
CLASSIC = (DATASCIENCE, BASE, CUSTOM_1, CUSTOM_2, DISTRIBUTION_1, DISTRIBUTION_2, R_HERE)


def specs(names, default=None, **spec):
    return KernelSpecs(default, {name: {"name": name, "spec": spec, "resources": {}} for name in names})


def naming(name, **metadata):
    return {"kernelspec": {"name": name, "display_name": name, "language": "python"}, **metadata}


def there(name):
    return name.replace(HERE, THERE)


# --- Which name is wanted


def test_the_notebooks_kernel_is_taken_as_it_stands():
    choice = choose(specs(SPACE, "sparkkernel"), naming("python3"))
    assert (choice.name, choice.instance_type, choice.note) == ("python3", None, None)


def test_the_callers_wish_goes_before_the_notebooks_kernel():
    assert choose(specs(SPACE, "python3"), naming("python3"), kernel_name="sparkkernel").name == "sparkkernel"


@pytest.mark.parametrize(
    "metadata",
    [{}, {"kernelspec": None}, {"kernelspec": {}}, {"kernelspec": "x"}, naming(""), naming(None), naming(7)],
)
def test_a_notebook_without_a_kernel_runs_on_the_servers_default(metadata):
    assert choose(specs(SPACE, "python3"), metadata).name == "python3"


def test_neither_kernel_nor_default_is_an_error_with_what_there_is():
    with pytest.raises(
        KernelNotFoundError, match="names no kernel; the Studio app has glue_pyspark, python3, spark"
    ):
        choose(specs(SPACE), {})


def test_a_server_without_kernels_is_an_error():
    with pytest.raises(KernelNotFoundError, match="it has none") as caught:
        choose(specs([], "python3"), {})
    assert caught.value.available == []


# --- Spaces


@pytest.mark.parametrize("name", [DATASCIENCE, CUSTOM_1, DISTRIBUTION_1, f"python3{SEP}anything"])
def test_a_space_strips_a_classic_name_to_its_kernel(name):
    choice = choose(specs(SPACE), naming(name))
    assert choice.name == "python3"
    assert choice.note is not None
    assert name in choice.note


@pytest.mark.parametrize(
    "name", ["python2", R_HERE, f"{SEP}image", "Python3", "python", f"python3{SEP}", " python3"]
)
def test_a_space_takes_no_other_name_for_another(name):
    with pytest.raises(KernelNotFoundError) as caught:
        choose(specs(SPACE), naming(name))
    assert caught.value.kernel_name == name
    assert caught.value.available == ["glue_pyspark", "python3", "sparkkernel"]
    assert repr(name) in str(caught.value)
    assert "glue_pyspark, python3, sparkkernel" in str(caught.value)
    assert "kernel_name" in str(caught.value)


def test_a_space_whose_kernel_has_the_full_name_gives_that():
    assert choose(specs(["python3", DATASCIENCE]), naming(DATASCIENCE)).name == DATASCIENCE


def test_a_space_has_no_instance_types():
    choice = choose(specs(SPACE, instance_type="b"), naming("python3", instance_type="a"), instance_type="c")
    assert choice.instance_type is None


# --- Classic


@pytest.mark.parametrize("name", CLASSIC)
def test_classic_takes_the_exact_name(name):
    choice = choose(specs(CLASSIC), naming(name), classic=True)
    assert (choice.name, choice.note) == (name, None)


@pytest.mark.parametrize("name", CLASSIC)
def test_classic_finds_the_same_image_of_another_region_and_account(name):
    choice = choose(specs(CLASSIC), naming(there(name)), classic=True)
    assert choice.name == name
    assert choice.note is not None
    assert there(name) in choice.note
    assert name in choice.note


@pytest.mark.parametrize(
    "name",
    [
        there(f"python3{SEP}{HERE}image/datascience-2.0"),
        there(f"python3{SEP}{HERE}image/datascience-1"),
        there(f"python3{SEP}{HERE}image-version/mine/3"),
        there(f"python3{SEP}{HERE}image/mine/1"),
        there(f"python3{SEP}{HERE}image/sagemaker-distribution-cpu"),
        there(f"python3{SEP}{HERE}image/sagemaker-distribution-cpu{SEP}3.0.0"),
        there(f"ir{SEP}{HERE}image/datascience-1.0"),
        f"python3{SEP}image",
        "conda",
    ],
)
def test_classic_takes_no_other_image_version_alias_or_kernel(name):
    with pytest.raises(KernelNotFoundError, match="there is no kernel") as caught:
        choose(specs(CLASSIC), naming(name), classic=True)
    assert caught.value.available == sorted(CLASSIC)


def test_classic_completes_a_plain_name_that_one_image_has():
    choice = choose(specs(CLASSIC), naming("ir"), classic=True)
    assert choice.name == R_HERE
    assert choice.note is not None
    assert "the only one of that name" in choice.note


def test_classic_refuses_a_plain_name_that_several_images_have():
    with pytest.raises(KernelNotFoundError, match="several kernels fit 'python3'") as caught:
        choose(specs(CLASSIC), naming("python3"), classic=True)
    assert DATASCIENCE in str(caught.value)
    assert R_HERE not in str(caught.value)


def test_classic_refuses_one_image_of_two_accounts():
    elsewhere = DATASCIENCE.replace(HERE, "arn:aws:sagemaker:eu-west-2:1:")
    with pytest.raises(KernelNotFoundError, match="several kernels fit"):
        choose(specs([DATASCIENCE, there(DATASCIENCE)]), naming(elsewhere), classic=True)


@pytest.mark.parametrize(
    ("wish", "notebook", "spec", "expected"),
    [
        ("ml.a", "ml.b", {"instance_type": "ml.c", "metadata": {"instance_type": "ml.d"}}, "ml.a"),
        (None, "ml.b", {"instance_type": "ml.c", "metadata": {"instance_type": "ml.d"}}, "ml.b"),
        (None, None, {"instance_type": "ml.c", "metadata": {"instance_type": "ml.d"}}, "ml.c"),
        (None, None, {"metadata": {"instance_type": "ml.d"}}, "ml.d"),
        (None, "", {"metadata": {"instance_type": "ml.d"}}, "ml.d"),
        (None, None, {"metadata": None}, None),
        (None, None, {}, None),
    ],
)
def test_the_instance_type_is_the_callers_the_notebooks_or_the_specs(wish, notebook, spec, expected):
    metadata = naming(DATASCIENCE, instance_type=notebook)
    choice = choose(specs([DATASCIENCE], **spec), metadata, instance_type=wish, classic=True)
    assert choice.instance_type == expected


def test_the_instance_type_is_that_of_the_kernel_found_not_named():
    found = choose(specs(CLASSIC, instance_type="ml.t3.medium"), naming(there(DATASCIENCE)), classic=True)
    assert found.instance_type == "ml.t3.medium"


def test_a_spec_that_is_missing_or_null_is_empty():
    listed = KernelSpecs(None, {"a": {"name": "a"}, "b": {"spec": None}, "c": {"spec": {"language": "R"}}})
    assert [listed.spec(name) for name in ("a", "b", "c", "d")] == [{}, {}, {"language": "R"}, {}]
