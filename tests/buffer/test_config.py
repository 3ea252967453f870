from pathlib import Path

import pytest
from pydantic import Field, SecretStr

from buffer.config import BufferConfig, ConfigError, Shared, Table, load, resolved


class Inner(Table):
    depth: int = 1
    options: dict[str, object] = Field(default={})


class Learner(Table):
    steps: int = Field(default=10, ge=1)
    name: str = "none"
    key: SecretStr | None = None
    words: list[str] = Field(default=[])
    inner: Inner = Inner()


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "apprentice.toml"
    file.write_text(text)
    return file


def test_without_anything_there_are_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(Shared, env={}) == Shared()
    assert load(BufferConfig, "buffer", env={}).backend == "journal"


def test_flags_beat_variables_beat_the_file_beats_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, '[learner]\nsteps = 2\nname = "file"\nwords = ["file"]\n')
    env = {"APPRENTICE_LEARNER_STEPS": "3", "APPRENTICE_LEARNER_NAME": "variable"}
    config = load(Learner, "learner", file=file, env=env, flags={"steps": 4, "name": None})
    assert (config.steps, config.name, config.words, config.inner.depth) == (4, "variable", ["file"], 1)


def test_the_file_in_the_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 'alias = "here"\n')
    monkeypatch.chdir(tmp_path)
    assert load(Shared, env={}).alias == "here"


def test_a_variable_may_name_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, 'alias = "elsewhere"\n')
    assert load(Shared, env={"APPRENTICE_CONFIG": str(file)}).alias == "elsewhere"
    with pytest.raises(ConfigError, match="does not exist"):
        load(Shared, env={"APPRENTICE_CONFIG": str(tmp_path / "absent.toml")})


def test_variables_are_toml_where_they_parse_and_text_where_text_is_wanted() -> None:
    env = {
        "APPRENTICE_LEARNER_NAME": "123",
        "APPRENTICE_LEARNER_KEY": "456",
        "APPRENTICE_LEARNER_WORDS": '["a", "b"]',
        "APPRENTICE_LEARNER_INNER_DEPTH": "7",
        "APPRENTICE_LEARNER_INNER_OPTIONS_RETRIES": "3",
        "APPRENTICE_LEARNER_INNER_OPTIONS_PASSWORD": "789",
    }
    config = load(Learner, "learner", env=env)
    assert config.name == "123"
    assert config.key == SecretStr("456")
    assert config.words == ["a", "b"]
    assert config.inner == Inner(depth=7, options={"retries": 3, "password": "789"})


def test_nested_tables_merge(tmp_path: Path) -> None:
    file = write(tmp_path, '[buffer.kafka]\npartitions = 4\nclient = {sasl_mechanism = "PLAIN"}\n')
    env = {"APPRENTICE_BUFFER_KAFKA_BOOTSTRAP_SERVERS": "a:1, b:2"}
    kafka = load(BufferConfig, "buffer", file=file, env=env).kafka
    assert (kafka.partitions, kafka.bootstrap_servers) == (4, ["a:1", "b:2"])
    assert kafka.client == {"sasl_mechanism": "PLAIN"}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[lerner]\nsteps = 1\n", r"unknown table \[lerner\]", "did you mean [learner]?"),
        ('alais = "x"\n', "unknown key alais", "did you mean alias?"),
        ("[learner]\nstpes = 1\n", "unknown key learner.stpes", "did you mean steps?"),
        ("[learner.inner]\ndeph = 1\n", "unknown key learner.inner.deph", "did you mean depth?"),
        ("[learner]\nzzz = 1\n", "unknown key learner.zzz", "known here: steps, name, key, words, inner"),
        ("learner = 3\n", "must be a table", "write [learner] on a line of its own"),
        ("[learner\n", "apprentice.toml", "correct the file"),
    ],
)
def test_what_the_file_should_not_say_is_an_error(tmp_path: Path, text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(Learner, "learner", file=write(tmp_path, text), env={})
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("APPRENTICE_LERNER_STEPS", "did you mean APPRENTICE_LEARNER_STEPS?"),
        ("APPRENTICE_MODLE", "did you mean APPRENTICE_MODEL?"),
        ("APPRENTICE_LEARNER_STPES", "did you mean steps?"),
    ],
)
def test_a_variable_that_means_nothing_is_an_error(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="unknown") as caught:
        load(Learner, "learner", env={name: "1"})
    assert caught.value.hint == hint


def test_variables_of_other_tables_and_programs_are_not_ours_to_judge() -> None:
    assert load(Learner, "learner", env={"APPRENTICE_SERVER_PORT": "1", "PATH": "/bin"}) == Learner()


def test_a_wrong_value_names_its_source(tmp_path: Path) -> None:
    file = write(tmp_path, "[learner]\nsteps = 5\n")
    with pytest.raises(ConfigError, match=r"^APPRENTICE_LEARNER_STEPS: learner\.steps: .*greater than"):
        load(Learner, "learner", file=file, env={"APPRENTICE_LEARNER_STEPS": "0"})
    with pytest.raises(ConfigError, match=r"^the command line: learner\.steps: .*integer"):
        load(Learner, "learner", file=file, env={}, flags={"steps": "many"})


@pytest.mark.parametrize("alias", ["Apprentice", "", "-a", "a" * 64, "a@1"])
def test_an_alias_is_a_plain_name(alias: str) -> None:
    with pytest.raises(ConfigError, match="alias"):
        load(Shared, env={"APPRENTICE_ALIAS": alias})


def test_secrets_are_masked() -> None:
    env = {
        "APPRENTICE_BUFFER_KAFKA_CLIENT_SASL_PLAIN_PASSWORD": "hunter2",
        "APPRENTICE_BUFFER_KAFKA_CLIENT_SASL_PLAIN_USERNAME": "me",
    }
    config = load(BufferConfig, "buffer", env=env)
    assert config.kafka.client["sasl_plain_password"] == "hunter2"
    assert resolved(config)["kafka"]["client"] == {
        "sasl_plain_password": "**********",
        "sasl_plain_username": "me",
    }
    assert "hunter2" not in repr(config)
    assert "hunter2" not in str(resolved(Learner(key=SecretStr("hunter2"))))


def test_settings_that_would_break_the_relays_promises_are_refused() -> None:
    with pytest.raises(ConfigError, match="acks"):
        load(BufferConfig, "buffer", env={"APPRENTICE_BUFFER_KAFKA_CLIENT_ACKS": "1"})
    with pytest.raises(ConfigError, match="min_insync_replicas"):
        load(BufferConfig, "buffer", env={"APPRENTICE_BUFFER_KAFKA_MIN_INSYNC_REPLICAS": "2"})


def test_variables_that_are_no_settings_are_left_alone() -> None:
    env = {"APPRENTICE_URL": "http://127.0.0.1:8600", "APPRENTICE_TEST_MODEL": "somewhere"}
    assert load(Shared, env=env) == Shared()
