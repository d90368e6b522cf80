"""The token of clusters that are started here: one file per user, complete, for nobody else to read."""

from concurrent.futures import ThreadPoolExecutor

from negalign_ray.actors.token import TOKEN_FILE, ensure_token


def test_the_file_is_made_once_for_this_user_alone(tmp_path):
    environment: dict[str, str] = {}
    ensure_token(environment, home=tmp_path)
    path = tmp_path / TOKEN_FILE
    token = path.read_text()
    assert len(token) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    ensure_token(environment, home=tmp_path)
    assert path.read_text() == token
    assert environment == {}, "children would show it in their environment"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_runs_that_start_together_agree_on_one_token(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: ensure_token({}, home=tmp_path), range(64)))
    assert len((tmp_path / TOKEN_FILE).read_text()) == 64
    assert len(list((tmp_path / TOKEN_FILE).parent.iterdir())) == 1


def test_a_token_that_the_environment_names_is_the_one(tmp_path):
    for environment in ({"RAY_AUTH_TOKEN": "given"}, {"RAY_AUTH_TOKEN_PATH": "/a/file"}):
        before = dict(environment)
        ensure_token(environment, home=tmp_path)
        assert environment == before
    assert list(tmp_path.iterdir()) == []


def test_without_a_home_to_write_to_the_token_stays_in_the_process(tmp_path):
    (tmp_path / ".ray").write_text("a file where the folder should be")
    environment: dict[str, str] = {}
    ensure_token(environment, home=tmp_path)
    assert len(environment["RAY_AUTH_TOKEN"]) == 64
