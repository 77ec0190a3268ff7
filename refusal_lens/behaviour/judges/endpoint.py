"""A judge behind any OpenAI-compatible endpoint (a local vLLM, llama.cpp or Ollama server, or a hosted one)."""

import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import KW_ONLY, dataclass
from typing import Any

from .base import JudgeError, Judgement, Pairs, judge_longer
from .rubrics import REFUSAL, Rubric

RETRY_STATUS = (408, 409, 425, 429, 500, 502, 503, 504)


@dataclass(eq=False)
class EndpointJudge:
    """Asks ``{base_url}/chat/completions`` about each reply, at temperature 0.

    Args:
        base_url: e.g. "http://127.0.0.1:8000/v1".
        rubric: the question, and how the answer is read.
        api_key_env: environment variable that holds the key; none is sent if it is empty. The key is never saved.
        short_words: a reply with fewer words is withheld without a request; 0 (off) by default.
        timeout: seconds for one answer.
        tries: attempts before giving up, with growing pauses between them.
        pause: first pause in seconds.
    """

    base_url: str
    model: str
    _: KW_ONLY
    rubric: Rubric = REFUSAL
    api_key_env: str = "OPENAI_API_KEY"
    short_words: int = 0
    timeout: float = 60.0
    tries: int = 4
    pause: float = 1.0
    name: str = ""
    batch_size = 1  # every answer is on disk before the next question

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise JudgeError(f"the judge's address {self.base_url!r} must begin with http:// or https://")
        self.base_url, self.kind = self.base_url.rstrip("/"), self.rubric.kind
        self.name = self.name or (self.model if self.rubric is REFUSAL else f"{self.rubric.name}, {self.model}")

    @property
    def identity(self) -> str:
        """Model, prompt and rules; not the address, so that a server may move."""
        return f"endpoint {self.model} {self.rubric.prompt} {self.rubric.max_new_tokens} {self.short_words}"

    def judge(self, pairs: Pairs) -> list[Judgement]:
        """Send one request per reply; JudgeError if unreachable after all tries, refused, or answered in another
        form."""
        return judge_longer(pairs, self.short_words, lambda longer: [self._ask(*pair) for pair in longer])

    def _ask(self, prompt: str, reply: str) -> Judgement:
        messages = [{"role": "user", "content": self.rubric.question(prompt, reply)}]
        limit = self.rubric.max_new_tokens
        answer = self._post({"model": self.model, "messages": messages, "temperature": 0, "max_tokens": limit})
        try:
            said = str(answer["choices"][0]["message"]["content"]).strip()
        except (KeyError, IndexError, TypeError) as error:
            raise JudgeError(
                f"{self.base_url} answered without choices[0].message.content: it is not an OpenAI-compatible "
                "chat endpoint (does the address end in /v1?)"
            ) from error
        return self.rubric.read(said)

    def _post(self, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.api_key_env, ""):
            headers["Authorization"] = f"Bearer {key}"
        url, content = f"{self.base_url}/chat/completions", json.dumps(body).encode()
        reason = ""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            request = urllib.request.Request(url, content, headers)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                reason = f"status {error.code}"
                if error.code not in RETRY_STATUS:
                    detail = error.read(300).decode("utf-8", "replace").strip()
                    raise JudgeError(
                        f"{url} refused the question ({reason}: {detail}); check the model name and "
                        f"the key in {self.api_key_env}"
                    ) from error
            except (OSError, ValueError) as error:  # unreachable, cut off, timed out, or not JSON
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            except Exception as error:  # http.client raises its own kinds when a server dies in the middle
                reason = f"{type(error).__name__}: {error}"
        raise JudgeError(
            f"{url} gave no answer in {self.tries} tries ({reason}); verdicts so far are kept: start the endpoint "
            "and run the same command again"
        )
