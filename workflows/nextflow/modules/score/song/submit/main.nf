process SONG_SUBMIT {
    tag "${payload}"
    label 'process_single'
    secret 'SCORE_TOKEN'

    conda "${moduleDir}/environment.yml"
    container 'score-transfer:0.1.0'

    input:
    tuple val(meta), path(payload), path(files)

    output:
    env 'analysis_id', emit: analysis_id
    tuple val(meta), env('analysis_id'), path(payload), path(files), emit: analysis_files
    tuple val(meta), env('analysis_id'), path("*.manifest.txt"), path(files), emit: manifest_upload
    tuple val("${task.process}"), val('score'), eval("score --version | sed -n 's/.*Version: //p'"), topic: versions, emit: versions_score

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    def prefix = task.ext.prefix ?: "${payload.baseName}"
    def study_id = meta['study_id']
    """
    analysis_id=\$(
        score submit '${payload}' \\
            --study-id '${study_id}' \\
            --input-dir . \\
            --output '${prefix}.manifest.txt' \\
            --workflow-exit-codes \\
            ${args}
    )
    """

    stub:
    def prefix = task.ext.prefix ?: "${payload.baseName}"
    """
    analysis_id=00000000-0000-0000-0000-000000000000
    printf '%s\\t\\t\\n' "\$analysis_id" > '${prefix}.manifest.txt'
    """
}
