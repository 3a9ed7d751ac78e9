"""RobustBench's CIFAR-10 entries of the five families: constructor, normalisation, threat, claims, licence. No torch.

Architectures, normalisations and file ids are those of RobustBench's own table (robustbench/model_zoo/cifar10.py);
accuracies are the leaderboard's, clean and under AutoAttack, and claims until measured here.
"""

from __future__ import annotations

from dataclasses import dataclass

from robustkt.catalog import unknown

CIFAR = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NONE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Entry:
    """One checkpoint of RobustBench, CIFAR-10, L∞."""

    arch: str  # catalog name, or wideresnetD_W, dmwideresnetD_W
    drive: str  # id of the file on Google Drive
    statistics: Statistics = NONE  # mean and std; DeepMind's lie in the file too
    clean: float | None = None  # claimed accuracies
    robust: float | None = None
    license: str = "MIT"
    eps: str = "8/255"  # in [0, 1] pixel units; of four entries .031, as their leaderboard rows say

    @property
    def url(self) -> str:
        """Where the file is downloaded from."""
        return f"https://drive.usercontent.google.com/download?id={self.drive}&export=download&confirm=t"


WRN28, WRN34, DM28, DM70 = "wideresnet28_10", "wideresnet34_10", "dmwideresnet28_10", "dmwideresnet70_16"
DM18, APACHE = "dmpreactresnet18", "Apache-2.0"

ENTRIES = {
    "Addepalli2021Towards_RN18": Entry("resnet18", "1-1DxecXz5U_xZ54DVdE-GVm71Tiox-Ri"),
    "Addepalli2021Towards_WRN34": Entry(WRN34, "1-3vgjTNfSq7LSMKuayEQ-jLflAP196dB"),
    "Addepalli2022Efficient_RN18": Entry("resnet18", "1m5vhdzIUUKhDbsZdOG9z76Eyp6f4xe_f", NONE, 0.8571, 0.5248),
    "Addepalli2022Efficient_WRN_34_10": Entry(WRN34, "1--dVDtZhAk4D2zMtTDwIGnImuCGxTcBA"),
    "Andriushchenko2020Understanding": Entry("preactresnet18_nobn_raw", "1Uyvprd98bIyxfMjLdCZwm-NEJ-6GMVis"),
    "Carmon2019Unlabeled": Entry(WRN28, "15tUx-gkZMYx7BfEOw1GY5OKC-jECIsPQ"),
    "Chen2020Efficient": Entry(WRN34, "1c5EXpd3Kn_s6qQIbkLX3tTOOPC8VslHg", CIFAR),
    "Chen2021LTD_WRN34_10": Entry(WRN34, "1-0RoQKYvHLNh7hZ71wJjSit1XtrJQo9D", NONE, 0.8521, 0.5694),
    "Chen2021LTD_WRN34_20": Entry("wideresnet34_20", "1-5JmY9rapuGwCUc2nPvy7Rb_sn_dHhFm"),
    "Cui2020Learnable_34_10": Entry(WRN34, "16s9pi_1QgMbFLISVvaVUiNfCzah6g2YV"),
    "Cui2020Learnable_34_20": Entry("wideresnet34_20", "1y7BUxPhQjNlb4w4BUlDyYJIS4w4fsGiS"),
    "Gowal2020Uncovering_28_10_extra": Entry(DM28, "1MBAWGxiZxKt-GfqEqtLcXcd3tAxPhvV2", CIFAR, license=APACHE),
    "Gowal2020Uncovering_34_20": Entry(
        "dmwideresnet34_20", "1YWvZO1u9_yNLFNC3JYd_TVkvrRSMER1O", CIFAR, license=APACHE
    ),
    "Gowal2020Uncovering_70_16": Entry(DM70, "1DVwKclibqzniE2Ss5_g6BY77ChG8QKzl", CIFAR, license=APACHE),
    "Gowal2020Uncovering_70_16_extra": Entry(DM70, "1GxryYj_Or-VCDca0wgiFLz4ssXSZXQoJ", CIFAR, license=APACHE),
    "Gowal2021Improving_28_10_ddpm_100m": Entry(DM28, "12L8YE6VBgUDKyW6GMSNefSYj2gg4LEKx", CIFAR, license=APACHE),
    "Gowal2021Improving_70_16_ddpm_100m": Entry(DM70, "10qBoDG_NomJBrRFeTsSwEcJF1GA-sjC4", CIFAR, license=APACHE),
    "Gowal2021Improving_R18_ddpm_100m": Entry(
        DM18, "1-0EuCJashqSXEkkd1DOzFA4tH8KL2kim", CIFAR, 0.8735, 0.5863, APACHE
    ),
    "Hendrycks2019Using": Entry(WRN28, "1-DcJsYw2dNEOyF9epks2QS7r9nqBDEsw", HALF, license=APACHE),
    "Huang2020Self": Entry(WRN34, "1nInDeIyZe2G-mJFxQJ3UoclQNomWjMgm", eps="0.031"),
    "Jia2022LAS-AT_34_10": Entry(WRN34, "1-3l7xKhIPyes3O4QSz0HU6L-hfOoS0xD"),
    "Jia2022LAS-AT_70_16": Entry("wideresnet70_16", "1-4p-Gr0hjl8wq6qvvTza4x4a5Rmu-Bfr"),
    "Pang2022Robustness_WRN28_10": Entry(DM28, "16ChNkterCp17BXv-xxqpfedb4u2_CjjS", CIFAR),
    "Pang2022Robustness_WRN70_16": Entry(DM70, "1uQZYUuUiL9BzaQUeXLhjr_RhoyFRrHe3", CIFAR),
    "Rade2021Helper_R18_ddpm": Entry(DM18, "1f2yJUo-jxCQNk589frzriv6wPyrQEZdX", CIFAR, 0.8686, 0.5709),
    "Rade2021Helper_R18_extra": Entry(DM18, "1hdXk1rPJql2Oa84Kky64fMTQzng5UcTL", CIFAR),
    "Rade2021Helper_ddpm": Entry(DM28, "1AOF6LxnwgS5fCz_lVLYqs_wnUYuv6O7z", CIFAR),
    "Rade2021Helper_extra": Entry("dmwideresnet34_10", "1GhAp-0C3ONRy9BxIe0J9vKc082vHvR7t", CIFAR),
    "Rebuffi2021Fixing_28_10_cutmix_ddpm": Entry(DM28, "1-0EChXbc6pOvx26O17av263bCeqIAz6s", CIFAR, license=APACHE),
    "Rebuffi2021Fixing_70_16_cutmix_ddpm": Entry(DM70, "1-8CWRT-OFWyrz4T4s0I2mbFjPg8K_MUi", CIFAR, license=APACHE),
    "Rebuffi2021Fixing_70_16_cutmix_extra": Entry(DM70, "1qKDTp6IJ1BUXZaRtbYuo_t0tuDl_4mLg", CIFAR, license=APACHE),
    "Rebuffi2021Fixing_R18_ddpm": Entry(DM18, "1--dxE66AsgBSUsuK2sXCTrsYUV9B5f95", CIFAR, license=APACHE),
    "Rice2020Overfitting": Entry("wideresnet34_20", "1vC_Twazji7lBjeMQvAD9uEQxi9Nx2oG-", CIFAR),
    "Sehwag2020Hydra": Entry(WRN28, "1pi8GHwAVkxVH41hEnf0IAJb_7y-Q8a2Y"),
    "Sehwag2021Proxy": Entry(WRN34, "1QFA5fPMj2Qw4aYNG33PkFqiv_RTDWvzm"),
    "Sehwag2021Proxy_R18": Entry("resnet18", "1-ZgoSlD_AMhtXdnUElilxVXnzK2DcHuu", NONE, 0.8459, 0.5554),
    "Sitawarin2020Improving": Entry(WRN34, "12teknvo6dQGSWBaGnbNFwFO3-Y8j2eB6"),
    "Sridhar2021Robust": Entry(WRN28, "1muDMpOyRlgJ7n2rhS2NpfFGp3rzjuIu0"),
    "Sridhar2021Robust_34_15": Entry("wideresnet34_15", "1-3ii3GX93YqIcmJ3VNsOgYA7ecdnSZ0Z"),
    "Wang2020Improving": Entry(WRN28, "1T939mU4kXYt5bbvM55aT4fLBvRhyzjiQ"),
    "Wang2023Better_WRN-28-10": Entry(DM28, "1-6MYKJdECDVGaWjj6GgqvaT95BGKhUvI", CIFAR, 0.9244, 0.6731),
    "Wang2023Better_WRN-70-16": Entry(DM70, "1-RF7ZSS-PAh6bfQcuqx4lh9bc9BUGnap", CIFAR),
    "Wong2020Fast": Entry(
        "preactresnet18_nobn_raw", "1Re--_lf3jCEw9bnQqGkjw3J7v2tSZKrv", CIFAR, 0.8334, 0.4321
    ),
    "Wu2020Adversarial": Entry(WRN34, "13LBcgNvhFppCFG22i1xATrahFPfMgXGf"),
    "Wu2020Adversarial_extra": Entry(WRN28, "1-WJWpAZLlmc4gJ8XXNf7IETjnSZzaCNp"),
    "Zhang2019Theoretically": Entry(
        WRN34, "1hPz9QQwyM7QSuWu-ANG_uXR-29xtL8t_", NONE, 0.8492, 0.5308, eps="0.031"
    ),
    "Zhang2019You": Entry(WRN34, "1kB2qqPQ8qUNmK8VKuTOhT1X4GT46kAoA"),
    "Zhang2020Attacks": Entry(WRN34, "1lBVvLG6JLXJgQP2gbsTxNHl6s3YAopqk", eps="0.031"),
    "Zhang2020Geometry": Entry(WRN28, "1UoG1JhbAps1MdMc6PEFiZ2yVXl_Ii5Jk", eps="0.031"),
}  # fmt: skip


def entry(name: str) -> Entry:
    """The entry called `name`, in RobustBench's spelling; case does not matter.

    Raises:
        UsageError: there is none, or it is of none of the five families.
    """
    found = next((known for known in ENTRIES if known.lower() == name.lower()), None)
    if found is None:
        raise unknown("RobustBench entry", name, ENTRIES)
    return ENTRIES[found]
