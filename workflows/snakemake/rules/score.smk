# Rules for a Score repository and its Song, for `include:` and for `module`. What they do is said under `score` in the config:
#
#   score:
#     study_id: TEST-CA
#     settings: {url: "https://..."}   # params of every wrapper; what is not given comes from the settings of the `score` command
#     objects:                         # names of one's own -> object ids
#       NA12878.bam: 55ef4496-6f21-569b-a01a-1e9e0a6a917f
#     analyses:                        # names of one's own -> analysis ids
#       NA12878: a25ae8b4-097d-11ea-b4b9-41f0d4c18919
#     regions:                         # names of one's own -> a region, or a list of them
#       TP53: "17:7571720-7590868"
#     submissions:                     # names of one's own -> the files of a new analysis
#       counts: [results/counts.tsv]
#
# Never a token: it comes from the environment, a token file, or the configuration file of the `score` command. Where outputs and logs go
# is said by Snakemake's pathvars `results` and `logs`.


wildcard_constraints:
    score_object="[^/]+",
    score_analysis="[^/]+",
    score_region="[^/]+",
    score_submission="[^/]+",


# An object, under a name of one's own.
rule download_object:
    output:
        "<results>/score/objects/{score_object}",
    log:
        "<logs>/score/download/{score_object}.log",
    conda:
        "../wrappers/score/download/environment.yaml"
    threads: 4
    params:
        **config["score"].get("settings", {}),
        object_id=lambda wildcards: config["score"]["objects"][wildcards.score_object],
    script:
        "../wrappers/score/download/wrapper.py"


# All files of an analysis, in a folder.
rule download_analysis:
    output:
        directory("<results>/score/analyses/{score_analysis}"),
    log:
        "<logs>/score/download/analysis_{score_analysis}.log",
    conda:
        "../wrappers/score/download/environment.yaml"
    threads: 4
    params:
        **config["score"].get("settings", {}),
        study_id=lambda wildcards: config["score"]["study_id"],
        analysis_id=lambda wildcards: config["score"]["analyses"][
            wildcards.score_analysis
        ],
    script:
        "../wrappers/score/download/wrapper.py"


# The manifest of an analysis.
rule write_manifest:
    output:
        "<results>/score/manifests/{score_analysis}.tsv",
    log:
        "<logs>/score/manifest/{score_analysis}.log",
    conda:
        "../wrappers/score/manifest/environment.yaml"
    params:
        **config["score"].get("settings", {}),
        study_id=lambda wildcards: config["score"]["study_id"],
        analysis_id=lambda wildcards: config["score"]["analyses"][
            wildcards.score_analysis
        ],
    script:
        "../wrappers/score/manifest/wrapper.py"


# The reads of a region, cut out of a BAM object, of which little more is fetched.
rule slice_object:
    output:
        "<results>/score/slices/{score_region}/{score_object}",
        index="<results>/score/slices/{score_region}/{score_object}.bai",
    log:
        "<logs>/score/view/{score_region}/{score_object}.log",
    wildcard_constraints:
        score_object=r"[^/]+\.bam",
    conda:
        "../wrappers/score/view/environment.yaml"
    threads: 4
    params:
        **config["score"].get("settings", {}),
        object_id=lambda wildcards: config["score"]["objects"][wildcards.score_object],
        regions=lambda wildcards: config["score"]["regions"][wildcards.score_region],
    script:
        "../wrappers/score/view/wrapper.py"


# Ids for the files of a submission, and the manifest to upload them by.
rule register_files:
    input:
        lambda wildcards: config["score"]["submissions"][wildcards.score_submission],
    output:
        manifest="<results>/score/submissions/{score_submission}.manifest.txt",
        receipt="<results>/score/submissions/{score_submission}.registered.json",
    log:
        "<logs>/score/register/{score_submission}.log",
    conda:
        "../wrappers/song/register/environment.yaml"
    params:
        **config["score"].get("settings", {}),
        study_id=lambda wildcards: config["score"]["study_id"],
    script:
        "../wrappers/song/register/wrapper.py"


# Their bytes.
rule upload_files:
    input:
        lambda wildcards: config["score"]["submissions"][wildcards.score_submission],
        manifest="<results>/score/submissions/{score_submission}.manifest.txt",
    output:
        "<results>/score/submissions/{score_submission}.uploaded.json",
    log:
        "<logs>/score/upload/{score_submission}.log",
    conda:
        "../wrappers/score/upload/environment.yaml"
    threads: 4
    params:
        **config["score"].get("settings", {}),
    script:
        "../wrappers/score/upload/wrapper.py"


# Published once all of them are there: from then on they can be downloaded, and no more be replaced.
rule publish_files:
    input:
        "<results>/score/submissions/{score_submission}.uploaded.json",
        analysis_id="<results>/score/submissions/{score_submission}.registered.json",
    output:
        "<results>/score/submissions/{score_submission}.published.json",
    log:
        "<logs>/score/publish/{score_submission}.log",
    conda:
        "../wrappers/song/publish/environment.yaml"
    params:
        **config["score"].get("settings", {}),
        study_id=lambda wildcards: config["score"]["study_id"],
    script:
        "../wrappers/song/publish/wrapper.py"
