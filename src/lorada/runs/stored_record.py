"""Records that are read from a JSON file, checked, and written again as they were read."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)


def checked_as_it_is(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """A value that is checked and stays as it is.

    pydantic would make 100.0 of the integer 100, and a file that is written again would change.
    """
    check(value)
    return value


# A number of a file: an integer stays one.
Number = Annotated[float, WrapValidator(checked_as_it_is)]


class StoredRecord(BaseModel):
    """A record of a file that others may have written to.

    Only its fields are checked. Keys that it has no field for are kept, and so is the order of all
    keys, which says which of some metrics is the main one.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    _stored_keys: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _remember_keys(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        record = handler(data)
        if isinstance(data, dict):
            record._stored_keys = tuple(data)
        return record

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values for some keys; new keys come last, in their order."""
        copy = super().model_copy(update=update, deep=deep)
        copy._stored_keys = tuple(dict.fromkeys([*self._stored_keys, *(update or {})]))
        return copy

    @property
    def further(self) -> dict[str, Any]:
        """The keys that it has no field for, with their values, in their order."""
        return self.__pydantic_extra__ or {}

    def stored(self) -> dict[str, Any]:
        """Its keys and values for a JSON file; fields that were never given are left out."""
        return {key: _plain(getattr(self, key)) for key in self._stored_keys}


def _plain(value: Any) -> Any:
    """A value with dicts in place of the records in it."""
    if isinstance(value, StoredRecord):
        return value.stored()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return value
