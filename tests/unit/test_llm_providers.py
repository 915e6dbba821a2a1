from __future__ import annotations

import orjson
import pytest

from perdure.errors import PermanentError
from perdure.llm.offline_where import OfflineWhere
from perdure.llm.providers import ModelChoice, resolve


async def offline() -> str:
    return "http://offline/v1"


async def found(environ=None, **said):
    return await resolve(ModelChoice(**said), offline, environ=environ or {})


async def test_nothing_configured_is_the_offline_model():
    assert (await found()).provider == "offline"
    assert (await found(model="gpt-x")).base_url == "http://offline/v1"
    assert (await found({"OPENAI_API_KEY": "k"}, provider="offline")).provider == "offline"


async def test_the_environment_is_the_default_and_configuration_goes_before_it():
    environ = {"OPENAI_API_KEY": "from-env", "OPENAI_BASE_URL": "http://env/v1/"}
    plain = await found(environ)
    assert (plain.base_url, plain.api_key) == ("http://env/v1", "from-env")
    said = await found(environ, api_key="own", base_url="http://own/v1", model="m")
    assert (said.base_url, said.api_key, said.model) == ("http://own/v1", "own", "m")


async def test_a_provider_has_an_address_and_a_key_of_its_own():
    groq = await found(
        {"GROQ_API_KEY": "g", "OPENAI_API_KEY": "o", "OPENAI_BASE_URL": "http://env"}, provider="groq", model="m"
    )
    assert (groq.base_url, groq.api_key) == ("https://api.groq.com/openai/v1", "g")
    assert (await found(base_url="http://127.0.0.1:9/v1", model="m")).base_url == "http://127.0.0.1:9/v1"
    assert (await found({"OPENAI_API_KEY": "o"})).base_url == "https://api.openai.com/v1"


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"provider": "nobody"}, "llm_provider"),
        ({"base_url": "localhost:1234"}, "llm_base_url"),
        ({"base_url": "ftp://x/v1"}, "llm_base_url"),
        ({"api_key": "  "}, "llm_api_key"),
        ({"api_key": "ключ"}, "llm_api_key"),
        ({"provider": "groq", "api_key": "k"}, "llm_model"),
    ],
)
async def test_a_setting_that_cannot_work_is_named(said, names):
    with pytest.raises(PermanentError, match=names) as told:
        await found(**said)
    assert "ключ" not in str(told.value)


async def test_the_offline_model_of_the_platform_is_used_when_it_listens(tmp_path, monkeypatch):
    from perdure.llm.offline import OfflineModel

    monkeypatch.delenv("PERDURE_OFFLINE_MODEL_URL", raising=False)
    running = OfflineModel()
    url = await running.start()
    (tmp_path / "platform.json").write_bytes(orjson.dumps({"offline_model_url": url}))
    where = OfflineWhere(tmp_path)
    assert await where.url() == url
    await running.stop()
    where.forget()
    own = await where.url()
    assert own != url, "a platform that is gone must not be asked"
    await where.close()


@pytest.mark.parametrize("said", [b"", b"[]", b'{"offline_model_url": 7}', b"{"])
async def test_a_broken_platform_file_means_a_model_inside_this_process(tmp_path, monkeypatch, said):
    monkeypatch.delenv("PERDURE_OFFLINE_MODEL_URL", raising=False)
    (tmp_path / "platform.json").write_bytes(said)
    where = OfflineWhere(tmp_path)
    assert (await where.url()).startswith("http://127.0.0.1:")
    await where.close()


async def test_the_environment_names_the_offline_model_first(tmp_path, monkeypatch):
    monkeypatch.setenv("PERDURE_OFFLINE_MODEL_URL", "http://there:1/v1/")
    assert await OfflineWhere(tmp_path).url() == "http://there:1/v1"
