"""Publishing a policy alone: for policies that come from a program, not from a run folder."""

import sys

from ohl_accel.hub.access import check_name
from ohl_accel.hub.card import policy_card
from ohl_accel.hub.contents import CARD_FILE, HEATMAP, MARGINALS, Files, check_for_secrets, public_json
from ohl_accel.hub.transfer import upload
from ohl_accel.policy import Policy
from ohl_accel.recipe import HubSection
from ohl_accel.report import figures
from ohl_accel.run_folder.files import POLICY_FILE


def push_policy(
    policy: Policy,
    text: str,
    repo: str,
    *,
    private: bool,
    license: str | None,
    tags: tuple[str, ...],
    version: str | None,
) -> str:
    """Publish a policy, its card and its figures in one commit; returns the URL of the commit.

    Args:
        policy: to publish.
        text: of its `policy.json`.
        repo, private, license, tags, version: as in the recipe's hub section.

    Raises:
        UserError: for a name that the Hub does not accept, or a policy file that contains a secret.
        RunFailedError: if the Hub rejects it, or cannot be reached.
    """
    check_name(repo)
    section = HubSection(
        repo=repo, private=private, policy_only=True, license=license, tags=tags, version=version
    )
    files: Files = {
        POLICY_FILE: public_json(text.encode()),
        HEATMAP: figures.policy_heatmap(policy),
        MARGINALS: figures.policy_marginals(policy),
        CARD_FILE: policy_card(policy, section).encode(),
    }
    check_for_secrets(files)
    return upload(files, section, lambda line: print(line, file=sys.stderr))
