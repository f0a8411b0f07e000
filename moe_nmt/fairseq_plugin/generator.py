"""Beam search for a `transformer_moe`: fairseq's search with fewer passes over memory."""

from __future__ import annotations

import math
from typing import Any

import torch
from fairseq.search import BeamSearch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from moe_nmt.fairseq_plugin.model import TransformerMoEModel

Hypothesis = dict[str, Tensor]


def longest_translation(generator: Any, source_length: int) -> int:
    """The tokens that fairseq's generator allows a translation before the end of sentence, in a batch whose longest
    source has `source_length`."""
    return min(int(generator.max_len_a * source_length + generator.max_len_b), generator.max_len - 1)


class BeamSearchGenerator:
    """Finds what fairseq's `SequenceGenerator` finds, with its settings.

    Sentences are not copied for each of their hypotheses; the first step and forced tokens are computed once per
    sentence; candidates are the best of each hypothesis, then of each sentence; a sentence that has as many finished
    hypotheses as the beam is wide leaves the batch. What is not plain beam search with one `transformer_moe` is left to
    fairseq's generator, which also answers for all other attributes.

    `sample["max_lengths"]`, a list of B numbers, may limit each translation on its own (tokens before the end of
    sentence); else all have the limit that fairseq computes from the longest source of the batch.
    """

    def __init__(self, generator: SequenceGenerator):
        self.fairseq = generator

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fairseq, name)

    @staticmethod
    def covers(generator: Any) -> bool:
        """Whether this is plain beam search with one `transformer_moe`."""
        return (
            type(generator) is SequenceGenerator
            and type(generator.search) is BeamSearch
            and generator.model.models_size == 1
            and isinstance(generator.model.single_model, TransformerMoEModel)
            and 2 * generator.beam_size < generator.vocab_size - 4
            and not generator.match_source_len
            and generator.lm_model is None
            and generator.repeat_ngram_blocker is None
            and generator.token_indices_to_suppress is None
        )

    @torch.no_grad()
    def generate(
        self,
        models: Any,
        sample: dict[str, Any],
        prefix_tokens: Tensor | None = None,
        constraints: Tensor | None = None,
        bos_token: int | None = None,
    ) -> list[list[Hypothesis]]:
        """See fairseq's generator: per sentence its hypotheses, the best first, as dictionaries."""
        ends = prefix_tokens is not None and bool((prefix_tokens.eq(self.pad) | prefix_tokens.eq(self.eos)).any())
        if constraints is not None or ends or self.model.single_model.decoder.need_attention:
            return list(
                self.fairseq.generate(
                    models, sample, prefix_tokens=prefix_tokens, constraints=constraints, bos_token=bos_token
                )
            )
        model = self.model.single_model
        source = sample["net_input"]["src_tokens"]
        encoder_out = model.encoder.forward_torchscript(sample["net_input"])
        max_lengths = sample.get("max_lengths") or [longest_translation(self, source.shape[1])] * source.shape[0]
        assert self.min_len <= min(max_lengths), "min_len cannot be larger than max_len, please adjust these!"
        found: list[list[Hypothesis]] = [[] for _ in range(source.shape[0])]
        alive = list(range(source.shape[0]))
        tokens = source.new_full((source.shape[0], 1), self.eos if bos_token is None else bos_token)
        scores = torch.zeros(
            source.shape[0], 1, device=source.device
        )  # cumulative; one column more than there are steps
        state: dict[Any, Any] = {}
        for step in range(max(max_lengths) + 1):
            logits = model.decoder(tokens, encoder_out, incremental_state=state)[0][:, -1]
            log_prob = self._log_probabilities(logits)
            if prefix_tokens is not None and step < min(prefix_tokens.shape[1], *max_lengths):
                forced = prefix_tokens[:, step : step + 1]
                scores = torch.cat([scores, scores[:, -1:] + log_prob.gather(1, forced)], 1)
                tokens = torch.cat([tokens, forced], 1)
                continue
            last = [place for place, s in enumerate(alive) if max_lengths[s] == step]
            score, row, token = self._candidates(log_prob, scores, len(alive), step, last)
            ended = token.eq(self.eos) & score.isfinite()
            finishing = ended[:, : self.beam_size].nonzero().tolist()
            self._finish(finishing, found, alive, tokens, scores, score, row)
            remaining = [
                place for place, s in enumerate(alive) if len(found[s]) < self.beam_size and step < max_lengths[s]
            ]
            if not remaining:
                break
            kept = None
            if len(remaining) < len(alive):
                kept = torch.tensor(remaining, device=source.device)
                alive = [alive[place] for place in remaining]
                score, row, token, ended = score[kept], row[kept], token[kept], ended[kept]
                encoder_out = model.encoder.reorder_encoder_out(encoder_out, kept)
                prefix_tokens = None if prefix_tokens is None else prefix_tokens[kept]
            going_on = ended.long().argsort(dim=1, stable=True)[:, : self.beam_size]
            rows = row.gather(1, going_on).flatten()
            tokens = torch.cat([tokens[rows], token.gather(1, going_on).view(-1, 1)], 1)
            scores = torch.cat([scores[rows], score.gather(1, going_on).view(-1, 1)], 1)
            model.decoder.reorder(state, rows, kept)
        return [sorted(hypotheses, key=lambda h: -float(h["score"])) for hypotheses in found]

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        """float32 [R, V] of the next token."""
        if self.temperature != 1:
            logits = logits / self.temperature
        log_prob = logits.float().log_softmax(-1)
        if self.unk_penalty:
            log_prob[:, self.unk] -= self.unk_penalty
        return log_prob

    def _candidates(
        self, log_prob: Tensor, scores: Tensor, sentences: int, step: int, last: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The 2 * beam best continuations of each sentence: cumulative scores, rows that they continue, and tokens.

        The sentences in `last` can only end.
        """
        log_prob[:, self.pad] = -math.inf
        if step < self.min_len:
            log_prob[:, self.eos] = -math.inf
        if last:
            by_sentence = log_prob.view(sentences, -1, log_prob.shape[1])
            ends = by_sentence[last, :, self.eos]
            by_sentence[last] = -math.inf
            by_sentence[last, :, self.eos] = ends
        value, token = log_prob.topk(2 * self.beam_size)
        hypotheses, each = log_prob.shape[0] // sentences, value.shape[1]
        value = (value + scores[:, -1:]).view(sentences, -1)
        score, place = value.topk(2 * self.beam_size)
        first = torch.arange(sentences, device=place.device)[:, None] * hypotheses
        return score, first + place // each, token.view(sentences, -1).gather(1, place)

    def _finish(
        self,
        finishing: list[list[int]],
        found: list[list[Hypothesis]],
        alive: list[int],
        tokens: Tensor,
        scores: Tensor,
        score: Tensor,
        row: Tensor,
    ) -> None:
        """Add the hypotheses that end with the candidates `finishing` to what is found, up to the beam size.

        They lie in the host's memory, where they come in one piece.
        """
        if not finishing:
            return
        sentence, candidate = torch.tensor(finishing, device=row.device).T
        parent, total = row[sentence, candidate], score[sentence, candidate]
        ends = tokens.new_full((len(finishing), 1), self.eos)
        texts = torch.cat([tokens[parent, 1:], ends], 1).cpu()
        each = torch.cat([scores[parent], total[:, None]], 1).diff().cpu()
        totals = (total / tokens.shape[1] ** self.len_penalty if self.normalize_scores else total).cpu()
        for number, (place, _) in enumerate(finishing):
            hypotheses = found[alive[place]]
            if len(hypotheses) < self.beam_size:
                hypotheses.append(
                    {
                        "tokens": texts[number],
                        "score": totals[number],
                        "attention": torch.empty(0),
                        "alignment": torch.empty(0),
                        "positional_scores": each[number],
                    }
                )
