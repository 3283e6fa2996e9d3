"""Where Optuna keeps a study that several drivers share, and that its dashboard can show.

A study says what to try next and nothing else: it may be deleted at any time. The tuning database
is what holds the results, and a search without its study goes on from those.
"""

from __future__ import annotations

import time
import warnings
from contextlib import suppress

import optuna
from sqlalchemy.exc import SQLAlchemyError

from kdsl.runtime.records.link import SERVERS


def open_storage(place: str) -> optuna.storages.BaseStorage:
    """Optuna's storage at a place; whatever its database raises if that cannot be used."""
    for scheme in SERVERS:
        if place.startswith(scheme):
            url = f"postgresql+psycopg://{place.removeprefix(scheme)}"
            return _database(url, {"pool_pre_ping": True})
    if place.startswith("sqlite:///"):
        return _database(place, {"connect_args": {"timeout": 30.0}})
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    return JournalStorage(JournalFileBackend(place))


def close_storage(storage: optuna.storages.BaseStorage) -> None:
    """Let go of a storage's connections, where it has any."""
    if isinstance(storage, optuna.storages.RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


def _database(url: str, options: dict[str, object]) -> optuna.storages.BaseStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):  # drivers that start at once get in each other's way making the tables
            with suppress(SQLAlchemyError):
                return optuna.storages.RDBStorage(url, engine_kwargs=options)
            time.sleep(0.2)
        return optuna.storages.RDBStorage(url, engine_kwargs=options)
