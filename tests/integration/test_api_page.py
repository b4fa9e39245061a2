"""The page, the documentation and the metrics."""

from __future__ import annotations

from tests.api_server import ApiLine, chat_body
from tests.processes import wait_until


def test_page_docs_and_metrics(line: ApiLine) -> None:
    answering = line.later("a", "b")
    assert line.http.post("/v1/chat/completions", json=chat_body()).status_code == 200
    answering.join()
    page = line.http.get("/").text
    for link in ("/docs", "/metrics", "/v1/workers"):
        assert f'href="{link}"' in page
    docs = line.http.get("/docs")
    assert docs.status_code == 200
    for text in (page, docs.text):
        assert "://" not in text  # nothing from elsewhere
    assert "/v1/jobs/{job_id}/events" in line.http.get("/openapi.json").json()["paths"]
    wait_until(lambda: 'num_lanes{model_name="fake"} 4.0' in line.http.get("/metrics").text, "the pool's view")
    metrics = line.http.get("/metrics").text
    for sample in (
        'penstock:generation_tokens_total{model_name="fake"} 2.0',
        'penstock:request_success_total{finished_reason="stop",model_name="fake"} 1.0',
        'penstock:time_to_first_token_seconds_count{model_name="fake"} 1.0',
        'penstock:inter_token_latency_seconds_count{model_name="fake"} 1.0',
        'penstock:num_requests_waiting{model_name="fake"} 0.0',
    ):
        assert sample in metrics
    assert "_created" not in metrics
