process SCORE_UPLOAD {
    tag "${analysis_id}"
    label 'process_low'
    secret 'SCORE_TOKEN'

    conda "${moduleDir}/environment.yml"
    container 'score-transfer:0.1.0'

    input:
    tuple val(meta), val(analysis_id), path(manifest), path(upload)

    output:
    tuple val(meta), val(analysis_id), emit: ready_to_publish
    tuple val(meta), path("*.upload.json"), emit: report
    tuple val("${task.process}"), val('score'), eval("score --version | sed -n 's/.*Version: //p'"), topic: versions, emit: versions_score

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    def prefix = task.ext.prefix ?: "${analysis_id}"
    // The manifest was written in the folder of another task: here its files are beside it, under their names.
    """
    awk 'BEGIN { FS = OFS = "\\t" } { sub(".*/", "", \$2); print }' '${manifest}' > '${prefix}.staged.txt'

    score upload \\
        --manifest '${prefix}.staged.txt' \\
        --workflow-exit-codes \\
        --json \\
        ${args} \\
        > '${prefix}.upload.json'
    """

    stub:
    def prefix = task.ext.prefix ?: "${analysis_id}"
    """
    echo '{}' > '${prefix}.upload.json'
    """
}
