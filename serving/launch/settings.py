"""Where the settings of a server come from: flags, variables LONGTAKE_*, a TOML file. What comes first counts."""

from __future__ import annotations

import argparse
import os
import re
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)
from typing_extensions import override

from engines.errors import ConfigError
from serving.auth import TOKEN_VARIABLE
from serving.config import ServerConfig, problem_of
from serving.launch.memory_preset import Chosen, fill_in
from serving.weights.catalog import MODELS_VARIABLE

PREFIX = "LONGTAKE_"
CONFIG_VARIABLE = "LONGTAKE_CONFIG"
OTHER_VARIABLES = {CONFIG_VARIABLE, TOKEN_VARIABLE, MODELS_VARIABLE}
"""Variables with the prefix that are no settings of a server."""


class ServerSettings(BaseSettings, ServerConfig):
    """A `ServerConfig` out of flags, the environment and a file."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    @classmethod
    @override
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags come on top of these; what is handed over is the file's."""
        return env_settings, init_settings


class SettingsFlags:
    """The flags of all settings, added to a parser, and `--config` for a file of them."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        config = f"a TOML file of settings; else ${CONFIG_VARIABLE}"
        parser.add_argument("--config", type=Path, metavar="FILE", help=config)
        self._source: CliSettingsSource[Any] = CliSettingsSource(
            ServerSettings, root_parser=parser, add_argument_method=_add_flag
        )

    def read(self, options: argparse.Namespace) -> Chosen:
        """The config that was asked for, its preset filled in. Raises ConfigError, which names the setting."""
        _refuse_unknown_variables()
        path = options.config or os.environ.get(CONFIG_VARIABLE)
        flags = {name: value for name, value in vars(options).items() if name not in ("config", "run", "flags")}
        source = self._source(parsed_args=argparse.Namespace(**flags))
        try:
            settings = ServerSettings(_cli_settings_source=source, **_table(path))
        except ValidationError as error:
            raise ConfigError(problem_of(error)) from None
        except SettingsError as error:
            raise ConfigError(str(error)) from None
        return fill_in(ServerConfig(**dict(settings)), settings.model_fields_set)


def _add_flag(parser: Any, *names: str, **options: Any) -> None:
    """Say what a value is by the flag's name, not by its type in Python, and no names of functions."""
    if not options.get("metavar", "").startswith("{"):
        options.pop("metavar", None)
    options["help"] = re.sub(
        r" \(default factory: .*\)| \(default: (\(\)|Tokens.*)\)", "", options.get("help", "")
    )
    parser.add_argument(*names, **options)


def _table(path: Path | str | None) -> dict[str, Any]:
    """The settings of a file. Raises ConfigError for one that cannot be read."""
    if path is None:
        return {}
    try:
        return tomllib.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the config file {str(path)!r} cannot be read: {error}") from error


def _refuse_unknown_variables() -> None:
    known = {f"{PREFIX}{name.upper()}" for name in ServerConfig.model_fields}
    for name in os.environ:
        setting = name.split("__")[0]
        if name.startswith(PREFIX) and setting not in known | OTHER_VARIABLES:
            similar = get_close_matches(setting, known, 1)
            hint = f"; did you mean {similar[0]}?" if similar else "; `longtake serve --help` names all settings"
            raise ConfigError(f"the variable {name} is no setting of a server{hint}")
