package api

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"html/template"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
)

// The document is the source of truth for the API; tests compare it with the
// code. The page is made from it when the service starts.
var (
	//go:embed openapi.yaml
	openAPI []byte
	//go:embed docs.html
	docsHTML string
	//go:embed docs.css
	docsCSS string
)

// asset serves content that changes with the version of the service only.
// Browsers ask each time whether it did.
func asset(contentType, policy string, content []byte) http.HandlerFunc {
	digest := sha256.Sum256(content)
	tag := `"` + hex.EncodeToString(digest[:16]) + `"`
	return func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", contentType)
		h.Set("ETag", tag)
		h.Set("Cache-Control", "no-cache")
		h.Set("X-Content-Type-Options", "nosniff")
		if policy != "" {
			h.Set("Content-Security-Policy", policy)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}
}

func serveOpenAPI() http.HandlerFunc { return asset("application/yaml", "", openAPI) }

// serveDocs serves the page. It has no script and fetches nothing, and the
// browser is told to see to that.
func serveDocs() http.HandlerFunc {
	style := sha256.Sum256([]byte(docsCSS))
	policy := "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; style-src 'sha256-" +
		base64.StdEncoding.EncodeToString(style[:]) + "'"
	return asset("text/html; charset=utf-8", policy, docsPage())
}

var docsPage = sync.OnceValue(func() []byte {
	page, err := renderDocs(openAPI)
	if err != nil {
		panic("api: the document is built in and was rendered by a test: " + err.Error())
	}
	return page
})

// renderDocs makes the page from an OpenAPI document.
func renderDocs(document []byte) ([]byte, error) {
	var root yaml.Node
	if err := yaml.Unmarshal(document, &root); err != nil {
		return nil, fmt.Errorf("reading the document: %w", err)
	}
	if len(root.Content) != 1 {
		return nil, fmt.Errorf("the document has %d roots", len(root.Content))
	}
	tmpl, err := template.New("docs").Parse(docsHTML)
	if err != nil {
		return nil, fmt.Errorf("reading the template: %w", err)
	}
	var page bytes.Buffer
	if err := tmpl.Execute(&page, newDocs(root.Content[0])); err != nil {
		return nil, fmt.Errorf("writing the page: %w", err)
	}
	return page.Bytes(), nil
}

// docs is what the template shows.
type docs struct {
	Style   template.CSS
	Title   string
	Intro   template.HTML
	Bearer  template.HTML
	Groups  []docsGroup
	Schemas []docsSchema
}

type docsGroup struct {
	Name        string
	Description template.HTML
	Operations  []docsOperation
}

type docsOperation struct {
	ID, Method, Path, Summary, Scope string
	Description                      template.HTML
	Parameters                       []docsRow
	BodyNote                         template.HTML
	Body                             []docsContent
	Responses                        []docsResponse
}

type docsResponse struct {
	Status      string
	Description template.HTML
	Headers     []docsRow
	Content     []docsContent
}

// docsContent is a body in one media type.
type docsContent struct {
	MediaType string
	Schemas   []string // names of schemas: links
	Note      string
	Examples  []docsExample
}

type docsExample struct{ Title, Text string }

// docsSchema is a named schema with a section of its own.
type docsSchema struct {
	Name        string
	Description template.HTML
	Rows        []docsRow
	Facts       []string
}

// docsRow is a parameter, a header or a member.
type docsRow struct {
	Name, In             string
	Type                 string
	Link                 string // the schema that Type names
	Required, Deprecated bool
	Description          template.HTML
	Facts                []string
	Rows                 []docsRow // members of an object
}

// tree is a part of the document, references to the root followed.
type tree struct {
	root *yaml.Node
	node *yaml.Node
	ref  string // the last part of the reference that led here
}

// newDocs reads the document. It does not check it: tests and the linter did.
func newDocs(root *yaml.Node) *docs {
	t := tree{root: root, node: root}
	d := &docs{
		Style: template.CSS(docsCSS), //nolint:gosec // it is built in
		Title: t.at("info", "title").text(),
		Intro: prose(t.at("info", "description").text()),
	}
	d.Bearer = prose(t.at("components", "securitySchemes", "bearer", "description").text())
	for _, tag := range t.at("tags").items() {
		d.Groups = append(d.Groups, docsGroup{Name: tag.at("name").text(), Description: prose(tag.at("description").text())})
	}
	for path, item := range t.at("paths").members() {
		for method, op := range item.members() {
			if method == "parameters" {
				continue
			}
			for i := range d.Groups {
				if g := &d.Groups[i]; g.Name == op.at("tags").items()[0].text() {
					g.Operations = append(g.Operations, newOperation(method, path, item, op))
				}
			}
		}
	}
	for name, schema := range t.at("components", "schemas").members() {
		d.Schemas = append(d.Schemas, docsSchema{
			Name: name, Description: prose(schema.at("description").text()),
			Rows: membersOf(schema), Facts: facts(schema),
		})
	}
	return d
}

func newOperation(method, path string, item, op tree) docsOperation {
	o := docsOperation{
		ID: op.at("operationId").text(), Method: strings.ToUpper(method), Path: path,
		Summary: op.at("summary").text(), Scope: op.at("x-scope").text(), Description: prose(op.at("description").text()),
		BodyNote: prose(op.at("requestBody", "description").text()), Body: contents(op.at("requestBody")),
	}
	for _, p := range append(item.at("parameters").items(), op.at("parameters").items()...) {
		row := newRow(p.at("name").text(), p.at("schema"))
		row.In, row.Required = p.at("in").text(), p.at("required").text() == "true"
		row.Description = prose(p.at("description").text())
		o.Parameters = append(o.Parameters, row)
	}
	for status, response := range op.at("responses").members() {
		r := docsResponse{Status: status, Description: prose(response.at("description").text()), Content: contents(response)}
		for name, header := range response.at("headers").members() {
			row := newRow(name, header.at("schema"))
			row.Description = prose(header.at("description").text())
			r.Headers = append(r.Headers, row)
		}
		o.Responses = append(o.Responses, r)
	}
	return o
}

func contents(parent tree) []docsContent {
	var list []docsContent
	for mediaType, media := range parent.at("content").members() {
		c := docsContent{MediaType: mediaType}
		schema := media.at("schema")
		for _, s := range append([]tree{schema, media.at("x-itemSchema")}, schema.at("oneOf").items()...) {
			if s.ref != "" {
				c.Schemas = append(c.Schemas, s.ref)
			}
		}
		if schema.ref == "" {
			c.Note = schema.at("description").text()
		}
		for _, e := range media.at("examples").members() {
			c.Examples = append(c.Examples, docsExample{e.at("summary").text(), e.at("value").example()})
		}
		if e := media.at("example"); e.node != nil {
			c.Examples = append(c.Examples, docsExample{"", e.example()})
		}
		list = append(list, c)
	}
	return list
}

// membersOf lists the members of an object.
func membersOf(schema tree) []docsRow {
	required := make(map[string]bool)
	for _, name := range schema.at("required").items() {
		required[name.text()] = true
	}
	var list []docsRow
	for name, member := range schema.at("properties").members() {
		row := newRow(name, member)
		row.Required = required[name]
		list = append(list, row)
	}
	return list
}

func newRow(name string, schema tree) docsRow {
	row := docsRow{
		Name: name, Type: schema.at("type").text(), Deprecated: schema.at("deprecated").text() == "true",
		Description: prose(schema.at("description").text()), Facts: facts(schema), Rows: membersOf(schema),
	}
	of := schema
	if items := schema.at("items"); items.node != nil {
		of, row.Type = items, "list of "+items.at("type").text()
		row.Facts = append(row.Facts, facts(items)...)
		row.Rows = membersOf(items)
	}
	if row.Type == "" {
		row.Type = "anything"
	}
	row.Link = of.ref
	return row
}

// facts are the bounds of a schema, in words.
func facts(schema tree) []string {
	var list []string
	if values := schema.at("enum").items(); len(values) > 0 {
		texts := make([]string, len(values))
		for i, v := range values {
			texts[i] = v.text()
		}
		list = append(list, "one of "+strings.Join(texts, ", "))
	}
	if longest := schema.at("maxLength").text(); longest != "" {
		list = append(list, cmp.Or(schema.at("minLength").text(), "0")+" to "+longest+" characters")
	}
	for _, f := range []struct{ key, format string }{
		{"format", "%s"}, {"pattern", "matches %s"}, {"minimum", "at least %s"}, {"maximum", "at most %s"},
		{"maxItems", "at most %s elements"}, {"maxProperties", "at most %s members"},
		{"default", "default %s"}, {"example", "for example %s"},
	} {
		if v := schema.at(f.key); v.node != nil {
			list = append(list, fmt.Sprintf(f.format, v.brief()))
		}
	}
	if schema.at("nullable").text() == "true" {
		list = append(list, "or null")
	}
	return list
}

// at goes down by the names of members.
func (t tree) at(names ...string) tree {
	for _, name := range names {
		next := tree{root: t.root}
		for key, member := range t.members() {
			if key == name {
				next = member
			}
		}
		t = next
	}
	return t
}

// members goes through an object in the document's order.
func (t tree) members() func(yield func(string, tree) bool) {
	return func(yield func(string, tree) bool) {
		if t.node == nil || t.node.Kind != yaml.MappingNode {
			return
		}
		for i := 0; i+1 < len(t.node.Content); i += 2 {
			if !yield(t.node.Content[i].Value, t.follow(t.node.Content[i+1])) {
				return
			}
		}
	}
}

func (t tree) items() []tree {
	if t.node == nil || t.node.Kind != yaml.SequenceNode {
		return nil
	}
	list := make([]tree, len(t.node.Content))
	for i, n := range t.node.Content {
		list[i] = t.follow(n)
	}
	return list
}

// follow goes where a reference leads.
func (t tree) follow(n *yaml.Node) tree {
	if n.Kind == yaml.MappingNode && len(n.Content) == 2 && n.Content[0].Value == "$ref" {
		parts := strings.Split(strings.TrimPrefix(n.Content[1].Value, "#/"), "/")
		target := tree{root: t.root, node: t.root}.at(parts...)
		target.ref = parts[len(parts)-1]
		return target
	}
	return tree{root: t.root, node: n}
}

func (t tree) text() string {
	if t.node == nil || t.node.Kind != yaml.ScalarNode {
		return ""
	}
	return t.node.Value
}

// brief is a value on one line: text as it is, anything else as JSON.
func (t tree) brief() string {
	if t.node.Kind == yaml.ScalarNode {
		return t.node.Value
	}
	var b bytes.Buffer
	t.json(&b)
	return b.String()
}

// example is a value as a body: text as it is, anything else as JSON, one
// member a line.
func (t tree) example() string {
	if t.node.Kind == yaml.ScalarNode {
		return strings.TrimSpace(t.node.Value)
	}
	var flat, indented bytes.Buffer
	t.json(&flat)
	if json.Indent(&indented, flat.Bytes(), "", "  ") != nil {
		return flat.String()
	}
	return indented.String()
}

// json writes a value with its members in the document's order.
func (t tree) json(b *bytes.Buffer) {
	switch t.node.Kind {
	case yaml.MappingNode:
		b.WriteByte('{')
		first := true
		for name, member := range t.members() {
			if !first {
				b.WriteByte(',')
			}
			first = false
			b.WriteString(quoted(name))
			b.WriteByte(':')
			member.json(b)
		}
		b.WriteByte('}')
	case yaml.SequenceNode:
		b.WriteByte('[')
		for i, item := range t.items() {
			if i > 0 {
				b.WriteByte(',')
			}
			item.json(b)
		}
		b.WriteByte(']')
	default:
		if t.node.Tag == "!!str" || t.node.Tag == "!!timestamp" {
			b.WriteString(quoted(t.node.Value))
		} else {
			b.WriteString(t.node.Value) // numbers, true, false, null are written alike
		}
	}
}

func quoted(s string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a string always can be
	return strings.TrimSuffix(b.String(), "\n")
}

var (
	codeSpan = regexp.MustCompile("`([^`]+)`")
	boldSpan = regexp.MustCompile(`\*\*([^*]+)\*\*`)
)

// prose writes the few forms of Markdown that the document uses: paragraphs,
// lists, code and bold.
func prose(text string) template.HTML {
	var b strings.Builder
	span := func(s string) {
		s = codeSpan.ReplaceAllString(html.EscapeString(s), "<code>$1</code>")
		b.WriteString(boldSpan.ReplaceAllString(s, "<strong>$1</strong>"))
	}
	for block := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		if list, ok := strings.CutPrefix(block, "- "); ok {
			b.WriteString("<ul>")
			for item := range strings.SplitSeq(list, "\n- ") {
				b.WriteString("<li>")
				span(item)
				b.WriteString("</li>")
			}
			b.WriteString("</ul>")
			continue
		}
		if block != "" {
			b.WriteString("<p>")
			span(block)
			b.WriteString("</p>")
		}
	}
	return template.HTML(b.String()) //nolint:gosec // the document is built in, and escaped all the same
}
