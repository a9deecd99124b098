process SONG_PUBLISH {
    tag "${analysis_id}"
    label 'process_single'
    secret 'SCORE_TOKEN'

    conda "${moduleDir}/environment.yml"
    container 'score-transfer:0.1.0'

    input:
    tuple val(meta), val(analysis_id)

    output:
    tuple val(meta), val(analysis_id), emit: analysis_id
    tuple val(meta), path("*.publish.json"), emit: report
    tuple val("${task.process}"), val('score'), eval("score --version | sed -n 's/.*Version: //p'"), topic: versions, emit: versions_score

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    def prefix = task.ext.prefix ?: "${analysis_id}"
    def study_id = meta['study_id']
    """
    score publish \\
        --study-id '${study_id}' \\
        --analysis-id '${analysis_id}' \\
        --workflow-exit-codes \\
        --json \\
        ${args} \\
        > '${prefix}.publish.json'
    """

    stub:
    def prefix = task.ext.prefix ?: "${analysis_id}"
    """
    echo '{}' > '${prefix}.publish.json'
    """
}
