from __future__ import annotations

import pytest

from medseg import errors


def test_every_error_of_the_tree_is_a_medseg_error_with_an_exit_code() -> None:
    classes = [getattr(errors, name) for name in errors.__all__ if isinstance(getattr(errors, name), type)]
    raised = [cls for cls in classes if issubclass(cls, BaseException)]
    assert len(raised) >= 10
    for cls in raised:
        assert issubclass(cls, errors.MedsegError)
        assert cls.exit_code in set(errors.ExitCode)


def test_a_refusal_shows_its_code_before_its_message() -> None:
    refusal = errors.Refusal("missing-slices", "found 19 of 20 slices")
    assert str(refusal) == "[missing-slices] found 19 of 20 slices"
    assert refusal.exit_code == errors.ExitCode.USAGE


def test_a_missing_dependency_says_how_to_install_it() -> None:
    assert "pip install 'medseg[pacs]'" in str(errors.MissingDependency("pynetdicom", "pacs", "the DICOM network"))


def test_reason_codes_are_unique_and_lower_case_words() -> None:
    assert len(set(errors.REASON_CODES)) == len(errors.REASON_CODES)
    assert all(code == code.lower() and " " not in code for code in errors.REASON_CODES)


@pytest.mark.parametrize(("error", "code"), [(errors.Interrupted, 75), (errors.UsageError, 2), (errors.CaseFailed, 1)])
def test_exit_codes_are_the_documented_ones(error: type[errors.MedsegError], code: int) -> None:
    assert error.exit_code == code
