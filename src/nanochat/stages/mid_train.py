"""Teach a pretrained model conversations, multiple choice and tools: the loss counts every token but padding.

reads   --model manifest of the parent stage, --tokenizer the manifest it was trained with, --data manifests of the
        fetched sources that the mixture draws from
writes  beside --manifest: model.safetensors, model.json, optimizer.safetensors, samples.json, config.json, provenance.json,
        metrics.jsonl, heartbeat.json; manifest.json last
resumes from resume/ there, saved every save_every_s seconds and when it is asked to stop (SIGTERM, SIGINT, SIGUSR1,
        SIGHUP or --max-seconds; exit code 75). Killed in any way and started again it ends with the same bytes.
by hand: nanochat mid_train --config '{"mixture": [{"task": "identity"}]}' --model results/RUN/base_train/manifest.json
         --tokenizer results/tokenizers/NAME/manifest.json --weights OUT/model.safetensors --manifest OUT/manifest.json
         What is finished for the same config and inputs is not trained again: delete its folder for that.

Rates, batch and sequence length are those of base_train, as model.json states them, the rates times lr_fraction.
Conversations are packed whole, never cut; those longer than a row are left out and counted in log and manifest.
"""

from nanochat.stages.tuning import Tuning, tune

KIND = Tuning(stage="mid_train", phase="mid", loss_on="all", keep_optimizer=True)


def main(arguments: list[str]) -> None:
    """Train, or go on training."""
    tune(KIND, __doc__, arguments)
