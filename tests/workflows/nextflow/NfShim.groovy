// Stands in for Nextflow where there is none: evaluates a file of processes or of a workflow under plain Groovy.
// Reads one request per line from stdin and answers each with one line on stdout, both JSON:
//   {file, inputs: {name: value}, ext: {...}, stub: bool}  the file's process: directives, inputs, outputs, script
//   {file, rows: [...]}                                    the file's workflow: take, calls, emit; rows are those of a samplesheet
//   {config, profile, params: {...}, exitStatuses: [...]}  a configuration: its settings, and what errorStrategy says of each status
// A file among the values is {path: name}. Scripts are only rendered here, never run.

import groovy.json.JsonOutput
import groovy.json.JsonSlurper
import org.codehaus.groovy.ast.ClassNode
import org.codehaus.groovy.ast.Parameter
import org.codehaus.groovy.ast.VariableScope
import org.codehaus.groovy.ast.expr.*
import org.codehaus.groovy.ast.stmt.*
import org.codehaus.groovy.classgen.GeneratorContext
import org.codehaus.groovy.control.CompilePhase
import org.codehaus.groovy.control.CompilerConfiguration
import org.codehaus.groovy.control.SourceUnit
import org.codehaus.groovy.control.customizers.CompilationCustomizer

/** Rewrites `process NAME { a: ... b: ... }` as `process('NAME', [a: {...}, b: {...}])`, and workflows alike. */
class Sections extends CompilationCustomizer {
    Sections() { super(CompilePhase.CONVERSION) }

    void call(SourceUnit source, GeneratorContext context, ClassNode node) {
        source.AST.statementBlock.statements.each { statement ->
            def call = statement instanceof ExpressionStatement ? statement.expression : null
            if (!(call instanceof MethodCallExpression) || !(call.methodAsString in ['process', 'workflow'])) return
            def argument = call.arguments.expressions[0]
            if (argument instanceof ConstantExpression) return  // rewritten already
            def named = argument instanceof MethodCallExpression
            def body = named ? argument.arguments.expressions[0] : argument
            call.arguments = new ArgumentListExpression(
                new ConstantExpression(named ? argument.methodAsString : ''), new MapExpression(sections(body.code.statements))
            )
        }
    }

    private static List<MapEntryExpression> sections(List<Statement> statements) {
        def found = [:], current = 'directives'
        statements.each { statement ->
            if (statement.statementLabels) current = statement.statementLabels[0]
            if (current == 'output') nameOptions(statement)
            found.get(current, []) << statement
        }
        found.collect { name, list ->
            def closure = new ClosureExpression(Parameter.EMPTY_ARRAY, new BlockStatement(list, new VariableScope()))
            closure.variableScope = new VariableScope()
            new MapEntryExpression(new ConstantExpression(name), closure)
        }
    }

    /** `emit: files` names a channel, whatever variable is called so. */
    private static void nameOptions(Statement statement) {
        statement.expression.arguments.expressions.findAll { it instanceof MapExpression }.each { map ->
            map.mapEntryExpressions.eachWithIndex { entry, place ->
                if (entry.valueExpression instanceof VariableExpression) {
                    def name = new ConstantExpression(entry.valueExpression.name)
                    map.mapEntryExpressions[place] = new MapEntryExpression(entry.keyExpression, name)
                }
            }
        }
    }
}

/** A file in a task's folder. */
class Staged {
    String name
    String getBaseName() { name.contains('.') ? name[0..<name.lastIndexOf('.')] : name }
    String toString() { name }
}

/** Several: a script gets their names with blanks between. */
class StagedFiles extends ArrayList {
    String toString() { join(' ') }
}

/** A call of something that only Nextflow has, such as `path("*.bam", emit: bam)`. */
class Call {
    String name
    List arguments
    boolean inner = false
}

/** `X.out.y` of a workflow. */
class Out {
    String of
    def getOut() { this }
    def propertyMissing(String name) { [channel: "${of}.${name}".toString()] }
}

/** A channel whose items are known: those of the samplesheet. */
class Items {
    List items
    Items filter(Closure keeps) { new Items(items: items.findAll { keeps(it) }) }
    Items map(Closure change) { new Items(items: items.collect { change(it) }) }
}

class Channels {
    def fromList(List items) { new Items(items: items) }
    def of(Object... items) { new Items(items: items as List) }
    def empty() { [channel: 'empty'] }
}

/** What the names in a section mean. `names`: each name is itself. Otherwise a name that is not known is an error, as in Nextflow. */
class Names {
    Map known = [:]
    boolean names = false
    boolean flows = false
    List asked = []
    List calls = []

    def propertyMissing(String name) {
        if (known.containsKey(name)) return known[name]
        asked << name
        if (names) return name
        if (flows) return new Out(of: name)
        throw new MissingPropertyException(name, Names)
    }

    void propertyMissing(String name, value) { known[name] = value }

    def methodMissing(String name, arguments) {
        (arguments as List).findAll { it instanceof Call }.each { it.inner = true }
        def call = new Call(name: name, arguments: arguments as List)
        calls << call
        call
    }

    List outer() { calls.findAll { !it.inner } }
}

/** The names of an entry workflow, where rows become tuples. */
class EntryNames extends Names {
    List rows
    void validateParameters() {}
    def samplesheetToList(String sheet, String schema) { rows }
    def tuple(Object... items) { items as List }
    def file(String path) { [path: path] }
    def files(String pattern) { [pattern: pattern] }
}

abstract class Nextflow extends Script {
    static List found
    def process(String name, Map sections) { found << [name, sections] }
    def workflow(String name, Map sections) { found << [name, sections] }
    def include(Closure names) { [from: { String path -> path }] }
}

/** A scope of a configuration. Closures in it, which Nextflow asks for each task, stay as they are. */
class Scope {
    Scope above
    Map values = [:]
    File folder
    Map given = [:]  // parameters of the command line
    String profile

    private Scope top() { above ? above.top() : this }

    private Scope scope(String name) {
        if (!(values[name] instanceof Scope)) values[name] = new Scope(above: this, folder: folder)
        values[name]
    }

    def propertyMissing(String name) {
        if (name == 'projectDir') return folder.path
        if (name == 'params') return top().scope('params')
        if (this.is(top().values.params)) {
            if (!values.containsKey(name)) throw new MissingPropertyException("params.$name", Scope)
            return values[name]
        }
        values.containsKey(name) && !(values[name] instanceof Scope) ? values[name] : scope(name)
    }

    void propertyMissing(String name, value) {
        values[name] = this.is(top().values.params) && top().given.containsKey(name) ? top().given[name] : value
    }

    def includeConfig(String path) { read(new File(folder, path)) }

    def methodMissing(String name, arguments) {
        def body = (arguments as List)[0]
        if (!(body instanceof Closure)) return values[name] = body  // id 'plugin'
        def isProfile = this.is(top().values.profiles)
        if (isProfile && name != top().profile) return values[name] = null
        body = body.clone()
        body.delegate = isProfile ? top() : name == 'params' ? top().scope('params') : scope(name)
        body.resolveStrategy = Closure.DELEGATE_FIRST
        body.call()
    }

    Scope read(File file) {
        def script = new GroovyShell(Shim.classLoader, new Binding(), new CompilerConfiguration(scriptBaseClass: DelegatingScript.name)).parse(file.text)
        script.setDelegate(this)
        script.run()
        this
    }

    static plain(value) {
        if (value instanceof Scope) return plain(value.values)
        if (value instanceof Closure) return 'dynamic'
        if (value instanceof GString) return value.toString()
        if (value instanceof List) return value.collect { plain(it) }
        value instanceof Map ? value.collectEntries { name, inner -> [name, plain(inner)] } : value
    }

    String strategy(int status) {
        def asked = values.process.values.errorStrategy.clone()
        asked.delegate = [task: [exitStatus: status]]
        asked.resolveStrategy = Closure.DELEGATE_FIRST
        asked.call()
    }
}

class Shim {
    private Map parsed = [:]

    private List definition(String path) {
        if (!parsed.containsKey(path)) {
            Nextflow.found = []
            def how = new CompilerConfiguration(scriptBaseClass: 'Nextflow')
            how.addCompilationCustomizers(new Sections())
            new GroovyShell(Shim.classLoader, new Binding(), how).evaluate(new File(path))
            parsed[path] = Nextflow.found[0]
        }
        parsed[path]
    }

    Map answer(Map request) {
        if (request.config) return configuration(request)
        def (name, sections) = definition(request.file)
        [name: name] + (sections.main || sections.take ? workflow(sections, request) : sections.script ? process(name, sections, request) : workflow([main: sections.directives], request))
    }

    private static Map configuration(Map request) {
        def file = new File(request.config)
        def found = new Scope(folder: file.parentFile, given: request.params ?: [:], profile: request.profile).read(file)
        [settings: Scope.plain(found), strategies: (request.exitStatuses ?: []).collect { found.strategy(it) }]
    }

    private Map process(String name, Map sections, Map request) {
        def task = [cpus: 2, memory: '2 GB', attempt: 1, process: name, ext: request.ext ?: [:]]
        def known = [task: task, moduleDir: new File(request.file).parent] + (request.inputs ?: [:]).collectEntries { key, value -> [key, staged(value)] }
        def inputs = run(sections.input, new Names(names: true))
        def directives = run(sections.directives, new Names(known: known))
        def runs = new Names(known: known)
        def when = call(sections.when, runs)
        def script = call(request.stub ? sections.stub : sections.script, runs)
        def outputs = run(sections.output, new Names(known: known))
        [inputs: inputs, directives: directives, when: when, script: script.toString(), outputs: outputs]
    }

    private Map workflow(Map sections, Map request) {
        def names = new EntryNames(flows: true, rows: request.rows ?: [])
        names.known = [channel: new Channels(), params: [input: 'samplesheet.csv'], projectDir: '/pipeline']
        def take = new Names(names: true)
        if (sections.take) call(sections.take, take)
        take.asked.each { names.known[it] = [channel: it] }
        call(sections.main, names)
        def calls = plain(names.outer())
        def before = names.known.keySet() as List
        if (sections.emit) call(sections.emit, names)
        [take: take.asked, calls: calls, emit: plain(names.known.findAll { key, value -> !(key in before) })]
    }

    private static List run(Closure section, Names names) {
        call(section, names)
        plain(names.outer())
    }

    private static call(Closure section, Names names) {
        def own = section.clone()
        own.delegate = names
        own.resolveStrategy = Closure.DELEGATE_FIRST
        own.call()
    }

    private static staged(value) {
        if (value instanceof Map && value.keySet() == ['path'] as Set) return new Staged(name: value.path)
        if (value instanceof Map) return value.collectEntries { key, inner -> [key, staged(inner)] }
        if (!(value instanceof List)) return value
        def list = value.collect { staged(it) }
        if (!list || !list.every { it instanceof Staged }) return list
        def files = new StagedFiles()
        files.addAll(list)
        files
    }

    private static plain(value) {
        switch (value) {
            case Call: return [name: value.name, arguments: plain(value.arguments)]
            case Items: return [items: plain(value.items)]
            case Staged: return [path: value.name]
            case List: return value.collect { plain(it) }
            case Map: return value.collectEntries { key, inner -> [key.toString(), plain(inner)] }
            case GString: return value.toString()
            default: return value
        }
    }
}

def shim = new Shim()
System.in.newReader('UTF-8').eachLine { line ->
    def answer
    try {
        answer = shim.answer(new JsonSlurper().parseText(line))
    } catch (Throwable error) {
        answer = [error: error.toString()]
    }
    println JsonOutput.toJson(answer)
    System.out.flush()
}
