"""The sample bundle of the audit's tests, for packing."""

from tests.bundle.conftest import bundle, pristine_bundle

__all__ = ["bundle", "pristine_bundle"]
