"""A round through files, batches, pictures and tunings by whichever google-genai is installed.

    python gemini_jobs_tour.py http://127.0.0.1:8484 KEY FOLDER

It prints one JSON object: for each stop what the client made of the answers. FOLDER has a.png, b.png and
c.png; the server has the models `stub`, which says what it is asked, and `tiny-painter`, which draws.
"""

from __future__ import annotations

import io
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from google import genai
from google.genai import types

RECIPE = {
    "class_noun": "toy", "identifier": "zwx", "steps": 2, "batch_size": 2, "learning_rate": 1e-3,
    "warmup_steps": 0, "text_learning_rate": 1e-3, "checkpoint_every": 2, "weights_dtype": "float32",
    "class_images": {"count": 6, "batch_size": 4, "steps": 2}, "trackers": [],
    "previews": {"every": 2, "steps": 1}, "scores": {"every": 0},
}  # fmt: skip


def until(found: Any) -> Any:
    for _ in range(3000):
        if value := found():
            return value
        time.sleep(0.1)
    raise TimeoutError


def ended(client: genai.Client, name: str) -> types.BatchJob:
    return until(lambda: (job := client.batches.get(name=name)).state.value[10:] in
                 ("SUCCEEDED", "FAILED", "CANCELLED") and job)  # fmt: skip


def files(client: genai.Client, folder: Path) -> Any:
    made = client.files.upload(file=str(folder / "a.png"), config={"display_name": "A"})
    again = client.files.get(name=made.name)
    listed = [one.name for one in client.files.list(config={"page_size": 1})]
    same = client.files.download(file=made) == (folder / "a.png").read_bytes()
    client.files.delete(name=made.name)
    return made.display_name, made.mime_type, made.state.value, again == made, listed == [made.name], same


def inline(client: genai.Client, _: Path) -> Any:
    asked = [types.InlinedRequest(contents=said, config={"seed": 3}) for said in ("one", "two")]
    made = client.batches.create(model="stub", src=asked, config={"display_name": "numbers"})
    job = ended(client, made.name)
    listed = [one.name for one in client.batches.list()]
    client.batches.cancel(name=made.name)
    client.batches.delete(name=made.name)
    said = [one.response.text for one in job.dest.inlined_responses]
    return job.display_name, job.state.value, job.model, said, listed == [made.name]


def from_file(client: genai.Client, _: Path) -> Any:
    lines = [
        json.dumps({"key": key, "request": {"contents": [{"parts": [{"text": key}]}]}}) for key in ("b", "a")
    ]
    data = io.BytesIO("\n".join(lines).encode())
    source = client.files.upload(file=data, config={"mime_type": "application/jsonl"})
    job = ended(client, client.batches.create(model="stub", src=source.name).name)
    found = client.files.download(file=job.dest.file_name).decode().splitlines()
    answers = [json.loads(line) for line in found]
    return [(one["key"], one["response"]["candidates"][0]["content"]["parts"][0]["text"]) for one in answers]


def pictures(client: genai.Client, _: Path) -> Any:
    config = types.GenerateContentConfig(response_modalities=["IMAGE"], seed=5)
    answer = client.models.generate_content(model="tiny-painter", contents="a fox", config=config)
    data = answer.candidates[0].content.parts[0].inline_data
    return data.mime_type, data.data[:4].hex()


def subject(client: genai.Client, folder: Path) -> Any:
    """Taught, watched, drawn, listed, renamed and forgotten."""
    images = [client.files.upload(file=str(folder / f"{name}.png")).name for name in "abc"]
    task = {"trainingData": {"files": images}, "hyperparameters": RECIPE}
    made = client.tunings.tune(
        base_model="models/tiny-painter",
        training_dataset=types.TuningDataset(examples=[]),
        config=types.CreateTuningJobConfig(
            tuned_model_display_name="my fox",
            http_options=types.HttpOptions(extra_body={"tuningTask": task}),
        ),
    )
    job = until(lambda: (job := client.tunings.get(name=made.name)).has_ended and job)
    config = types.GenerateContentConfig(response_modalities=["IMAGE"])
    name = job.tuned_model.model
    drawn = client.models.generate_content(model=name, contents="a [V] toy", config=config)
    listed = f"models/{name.partition('/')[2]}" in [one.name for one in client.models.list()]
    tuned = [one.name for one in client.models.list(config={"query_base": False})]
    renamed = client.models.update(model=name, config={"display_name": "Fox"}).display_name
    client.models.delete(model=name)
    gone = name not in [one.name for one in client.models.list(config={"query_base": False})]
    parts = drawn.candidates[0].content.parts
    return made.name, job.state.value, job.base_model, len(parts), listed, tuned, renamed, gone


def images(client: genai.Client, _: Path) -> Any:
    drawn = client.models.generate_images(
        model="tiny-painter",
        prompt="a fox",
        config=types.GenerateImagesConfig(number_of_images=2, aspect_ratio="16:9"),
    )
    return [(one.image.mime_type, one.image.image_bytes[:4].hex()) for one in drawn.generated_images]


def enterprise_subject(client: genai.Client, folder: Path) -> Any:
    # Enterprise clients have no files: the developer's client brings them.
    developer = genai.Client(
        api_key=client._api_client.api_key,
        http_options={"base_url": client._api_client._http_options.base_url},
    )
    names = [developer.files.upload(file=str(folder / f"{name}.png")).name for name in "abc"]
    recipe = {key: value for key, value in RECIPE.items() if key != "class_noun"}
    made = client.tunings.tune(
        base_model="tiny-painter",
        training_dataset=types.TuningDataset(gcs_uri=",".join(names)),
        config=types.CreateTuningJobConfig(
            tuned_model_display_name="their fox",
            labels={"class_noun": "toy"},
            http_options=types.HttpOptions(extra_body={"supervisedTuningSpec": {"hyperParameters": recipe}}),
        ),
    )
    job = until(lambda: (job := client.tunings.get(name=made.name)).has_ended and job)
    listed = [one.name for one in client.tunings.list()]
    drawn = client.models.generate_images(model=job.tuned_model.endpoint, prompt="a [V] toy")
    developer.models.delete(model="tunedModels/their-fox")
    return job.state.value, listed == [made.name], drawn.generated_images[0].image.image_bytes[:4].hex()


def main(url: str, key: str, folder: Path) -> None:
    warnings.simplefilter("ignore")
    developer = genai.Client(api_key=key, http_options={"base_url": url})
    enterprise = genai.Client(vertexai=True, api_key=key, http_options={"base_url": url})
    told = {"version": genai.__version__}
    for stop in (files, inline, from_file, pictures, subject):
        told[stop.__name__] = stop(developer, folder)
    for stop in (images, enterprise_subject):
        told[stop.__name__] = stop(enterprise, folder)
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:3], Path(sys.argv[3]))
