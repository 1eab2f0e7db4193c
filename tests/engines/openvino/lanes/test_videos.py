"""The contract of images and videos on a model with random weights that sees both, and what is
special about videos.
"""

import asyncio
import json
import random
import shutil
import threading
from concurrent.futures import wait
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import openvino as ov
import openvino_genai as genai
import pytest
import pytest_asyncio

import penstock
from penstock.batch import OpenVINOEngineProcessorConfig, build_processor
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.openvino.lanes.vision import Picture, Vision, _Shown
from penstock.engines.openvino.model.files import read_config
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.errors import EngineStartError, RequestError, UnsupportedError
from penstock.testing import GREEDY, answer
from penstock.testing.abilities import Images, Videos
from penstock.types import ChatRequest, CompletionRequest, Sampling
from video_models import video_file, video_model, video_part
from vision_models import image_file, image_part, picture, vision_model

OPTIONS = {
    "max_num_seqs": 16,
    "deterministic": True,
    "num_threads": 1,
    "kv_cache_memory_bytes": 64 << 20,
}
TEXT = {"type": "text", "text": "What happens?"}
SAMPLING = Sampling(temperature=0, max_tokens=6, ignore_eos=True)
JOB: dict[str, Any] = {"prompt": "What is {id}?", "max_tokens": 6, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return video_model(tmp_path_factory.mktemp("model"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model):
    engine = OpenVINOEngine(str(model), engine_kwargs=OPTIONS)
    await engine.start()
    yield engine
    await engine.stop()


def asked(*parts, sampling=SAMPLING):
    return ChatRequest([{"role": "user", "content": list(parts)}], sampling)


def tensor(pixels):
    return ov.Tensor(np.array(pixels))


def frames_of(data):
    """Eight of the 24 frames of a video."""
    with av.open(BytesIO(data), "r") as file:
        frames = list(file.decode(video=0))
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames[::3]])


@pytest.mark.asyncio(loop_scope="module")
class TestContract(Images, Videos):
    async def test_texts_are_those_of_the_pipeline(self, engine, model, tmp_path):
        shutil.copytree(model, tmp_path, dirs_exist_ok=True)
        config = json.loads((model / "config.json").read_text())
        config["vision_config"]["tokens_per_second"] = 1  # as transformers has it
        (tmp_path / "config.json").write_text(json.dumps(config))
        source = random.Random(0)
        kinds = [source.choice(["text", "image", "video", "both"]) for _ in range(64)]
        requests, wanted = [], []
        properties = {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        }
        pipeline = genai.VLMPipeline(str(tmp_path), "CPU", **properties)
        config = genai.GenerationConfig(max_new_tokens=6, ignore_eos=True, do_sample=False)
        for number, kind in enumerate(kinds):
            size = (64, 48) if number % 3 else (96, 64)
            clip, still = video_file(number, 24, size=size), picture(number, size)
            text = f"What is in number {number}?"
            parts = [video_part(clip)] if kind in ("video", "both") else []
            if kind in ("image", "both"):
                parts.append({"type": "image", "image": still})
            requests.append(asked(*parts, {"type": "text", "text": text}))
            wanted += pipeline.generate(
                text,
                images=[tensor(still)] if kind in ("image", "both") else [],
                videos=[tensor(frames_of(clip))] if kind in ("video", "both") else [],
                generation_config=config,
            ).texts
        found = await asyncio.gather(*(answer(engine, request) for request in requests))
        assert [one.texts[0] for one in found] == wanted

    async def test_forms_of_a_video(self, engine, tmp_path):
        frames = frames_of(video_file(1))
        images = [av.VideoFrame.from_ndarray(frame, format="rgb24").to_image() for frame in frames]
        texts = set()
        for part in (
            video_part(video_file(1)),
            {"type": "video", "video": video_file(1)},
            {"type": "video", "video": images},
        ):
            texts.add((await answer(engine, asked(part, TEXT))).texts[0])
        assert len(texts) == 1

    async def test_a_video_is_an_input_of_its_length(self, engine):
        tokens = [
            (await answer(engine, asked(video_part(video_file(1, frames)), TEXT))).usage
            for frames in (2, 4, 24)
        ]
        first, second, last = (usage.prompt_tokens for usage in tokens)
        assert last - second == 2 * (second - first) > 0  # pairs of frames, eight at most

    async def test_the_prefix_cache_tells_videos_apart(self, engine):
        await engine.reset_prefix_cache()
        first = await answer(engine, asked(video_part(video_file(3)), TEXT))
        again = await answer(engine, asked(video_part(video_file(3)), TEXT))
        other = await answer(engine, asked(video_part(video_file(4)), TEXT))
        assert first.usage.cached_tokens == other.usage.cached_tokens == 0
        assert again.usage.cached_tokens >= 16
        assert again.texts == first.texts != other.texts

    async def test_an_image_before_a_video_is_refused(self, engine):
        with pytest.raises(UnsupportedError, match="videos must stand before images"):
            await answer(engine, asked(image_part(image_file(1)), video_part(video_file(1))))

    @pytest.mark.parametrize("token", ["<|vision_start|>", "<|video_pad|>", "<|image_pad|>"])
    async def test_a_text_with_a_token_of_a_video_is_refused(self, engine, token):
        text = {"type": "text", "text": f"What is {token}?"}
        for parts in ([text], [video_part(video_file(1)), text]):
            with pytest.raises(RequestError, match="a token that stands for an image or a video"):
                await answer(engine, asked(*parts))
        with pytest.raises(RequestError, match="a token that stands for an image or a video"):
            await answer(engine, CompletionRequest(f"{token}?", GREEDY))

    async def test_bad_videos_are_refused_and_harm_nobody(self, engine):
        good = asked(video_part(video_file(1)), TEXT)
        alone = await answer(engine, good)
        data = video_file(2, form="avi")
        beside = [asyncio.create_task(answer(engine, good)) for _ in range(3)]
        for bad, words in (
            (b"no video", "no known form"),
            (data[:4000] + bytes(4000), "not usable"),
            (video_file(1, 2, size=(4096, 4096)), "pixels"),
        ):
            with pytest.raises(RequestError, match=words) as caught:
                await answer(engine, asked(*[video_part(bad)] * 3))
            assert caught.value.status == 400
        assert {one.texts[0] for one in await asyncio.gather(*beside)} == {alone.texts[0]}

    async def test_jobs_and_processors(self, engine, tmp_path):
        files = [video_file(number) for number in range(3)]
        (tmp_path / "0.mp4").write_bytes(files[0])
        texts = [{"type": "text", "text": f"What is {number}?"} for number in range(3)]
        wanted = [
            (await answer(engine, asked(video_part(file), text))).texts[0]
            for file, text in zip(files, texts, strict=True)
        ]
        rows = [{"id": 0, "clip": str(tmp_path / "0.mp4")}, {"id": 1, "clip": files[1]}]
        rows += [{"id": 2, "clip": files[2]}] * 2 + [{"id": 2, "clip": files[1]}]
        result = await penstock.arun(rows, engine=engine, image="clip", **JOB)
        found = [row["response"] for row in result.rows()]
        assert found[:4] == [*wanted, wanted[2]]
        assert found[4] != wanted[2]
        assert result.counts.deduplicated == 1
        chats = [
            [{"role": "user", "content": [{"type": "video", "video": clip}, text]}]
            for clip, text in zip([str(tmp_path / "0.mp4"), *files[1:]], texts, strict=True)
        ]
        asking: dict[str, Any] = {"messages": "chat", "max_tokens": 6, "ignore_eos": True}
        result = await penstock.arun([{"chat": chat} for chat in chats], engine=engine, **asking)
        assert [row["response"] for row in result.rows()] == wanted
        processor = build_processor(
            OpenVINOEngineProcessorConfig(engine=engine, prepare_multimodal_stage=True),
            preprocess=lambda row: {
                "messages": row["chat"],
                "sampling_params": {"temperature": 0, "max_tokens": 6, "ignore_eos": True},
            },
        )
        made = [row async for row in processor([{"chat": chat} for chat in chats])]
        assert [row["generated_text"] for row in made] == wanted

    async def test_aborted_requests_leave_no_frames(self, engine):
        parts = [video_part(video_file(number, size=(320, 240))) for number in range(12)]
        tasks = [asyncio.create_task(answer(engine, asked(part, TEXT))) for part in parts]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        kept = await asyncio.gather(*tasks[1::2])
        assert all(found.reasons[0] for found in kept)


async def test_how_many_frames_and_pixels_is_an_option(model):
    options = {**OPTIONS, "video_frames": 2, "max_video_pixels": 64 * 48 * 30}
    engine = OpenVINOEngine(str(model), engine_kwargs=options)
    await engine.start()
    try:
        two = await answer(engine, asked(video_part(video_file(1, 2)), TEXT))
        many = await answer(engine, asked(video_part(video_file(1, 24)), TEXT))
        assert two.usage.prompt_tokens == many.usage.prompt_tokens
        with pytest.raises(RequestError, match=r"31 frames of 64 × 48 have .* max_video_pixels"):
            await answer(engine, asked(video_part(video_file(1, 31)), TEXT))
    finally:
        await engine.stop()


async def test_models_that_see_no_videos_say_so(tmp_path, model):
    assert OpenVINOEngine(str(model)).stated_inputs() == ("text", "image", "video")
    still = OpenVINOEngine(str(vision_model(tmp_path)), engine_kwargs=OPTIONS)
    await still.start()
    try:
        assert still.capabilities.inputs == ("text", "image")
        with pytest.raises(UnsupportedError, match="reads texts and images, no 'video_url'"):
            await answer(still, asked(video_part(video_file(1)), TEXT))
    finally:
        await still.stop()
    for source in ("demo", still.model_source):
        with pytest.raises(EngineStartError, match="takes no video_frames"):
            await OpenVINOEngine(source, engine_kwargs={"video_frames": 4}).start()


def test_images_do_not_wait_for_a_long_video(model, monkeypatch):
    decoded = threading.Event()
    monkeypatch.setattr(
        Vision, "_decode", lambda self, picture: picture.videos and decoded.wait(10)
    )
    vision: Any = Vision(read_config(model), OpenVINOOptions())
    shown = _Shown([b""], (1, 1))
    long, image = (SimpleNamespace(picture=Picture([shown], videos)) for videos in ([shown], []))
    for request in (long, image):
        vision.begin(None, request)
    wait(vision._decoding, 10, "FIRST_COMPLETED")
    assert [request for _, request, _ in vision.turn(serving=True)] == [image]
    decoded.set()
    wait(vision._decoding)
    assert [request for _, request, _ in vision.turn(serving=True)] == [long]
    assert not vision.busy
