package order

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// document reads a JSON text strictly and gathers every fault instead of
// stopping at the first.
type document struct {
	text    []byte
	rules   *Rules
	program *Program // of the order's product, nil when nothing is agreed
	faults  Faults
	// members are those of all objects read so far.
	members []member
	// kept is what the order keeps of the text: one piece of memory for all of its
	// strings. Card data in clear never gets there.
	kept strings.Builder
	// scratch holds one string without its escapes.
	scratch []byte
}

// documents are used again: what they grew is what the next order needs.
var documents = sync.Pool{New: func() any { return new(document) }}

func newDocument(text []byte, rules *Rules) *document {
	d := documents.Get().(*document) //nolint:errcheck // the pool holds nothing else
	d.text, d.rules = text, rules
	return d
}

// release gives d back, holding nothing of the text.
func (d *document) release() {
	clear(d.scratch[:cap(d.scratch)]) // it may have held card data
	clear(d.members)
	if cap(d.members) > 1024 || cap(d.scratch) > MaxEncryptedData { // a hostile order's
		return
	}
	*d = document{members: d.members[:0], scratch: d.scratch[:0]}
	documents.Put(d)
}

// maxKept is what is made room for at once of what an order keeps, in bytes: more
// than most keep, and little for one that is mostly spaces.
const maxKept = 16 << 10

// maxFaults is how many faults an answer tells: more than an order can have
// that only its values are wrong with.
const maxFaults = 200

func (d *document) fault(pointer, code, format string, args ...any) {
	d.addFault(Fault{Pointer: pointer, Code: code, Detail: fmt.Sprintf(format, args...)})
}

func (d *document) addFault(f Fault) {
	switch {
	case len(d.faults) < maxFaults:
		d.faults = append(d.faults, f)
	case len(d.faults) == maxFaults:
		d.faults = append(d.faults, Fault{Code: CodeTooMany, Detail: "there are more faults than are listed"})
	}
}

// faulty tells whether a fault was found at pointer.
func (d *document) faulty(pointer string) bool {
	return slices.ContainsFunc(d.faults, func(f Fault) bool { return f.Pointer == pointer })
}

// root checks the grammar of the whole text (RFC 8259, with duplicate names
// and invalid UTF-8 refused) and returns its one object.
func (d *document) root() (object, bool) {
	if !jsontext.Value(d.text).IsValid() {
		d.grammarFault()
		return object{}, false
	}
	d.kept.Grow(min(len(d.text), maxKept)) // spaces are not kept
	from := d.space(0)
	return d.object("", span{from, d.valueEnd(from)})
}

// grammarFault finds out why the text is not one JSON value.
func (d *document) grammarFault() {
	dec := jsontext.NewDecoder(bytes.NewBuffer(d.text))
	if err := dec.SkipValue(); err != nil {
		pointer, detail := "", "the body is not valid JSON"
		if syntax, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
			detail = fmt.Sprintf("not valid JSON at byte %d", syntax.ByteOffset)
			if errors.Is(err, jsontext.ErrDuplicateName) {
				detail = "the same member twice"
			}
			if p := string(syntax.JSONPointer); isPlainPointer(p) {
				pointer = p
			}
		}
		d.fault(pointer, CodeInvalidJSON, "%s", detail)
		return
	}
	d.fault("", CodeInvalidJSON, "there is more after the end of the JSON value, at byte %d", dec.InputOffset())
}

// span is a place in the text. A JSON value is read where it stands.
type span struct{ from, to int }

// space is where the white space at i ends. Like all that reads the text from
// here on it relies on the grammar, which root has checked.
func (d *document) space(i int) int {
	for i < len(d.text) && d.text[i] <= ' ' {
		i++
	}
	return i
}

// stringEnd is where the string that begins at i ends.
func (d *document) stringEnd(i int) int {
	i++
	end := i + bytes.IndexByte(d.text[i:], '"')
	escape := bytes.IndexByte(d.text[i:end], '\\')
	if escape < 0 {
		return end + 1
	}
	for i += escape; d.text[i] != '"'; i++ {
		if d.text[i] == '\\' {
			i++
		}
	}
	return i + 1
}

// valueEnd is where the value that begins at i ends.
func (d *document) valueEnd(i int) int {
	switch d.text[i] {
	case '"':
		return d.stringEnd(i)
	case '{', '[':
		for depth := 0; ; {
			switch d.text[i] {
			case '"':
				i = d.stringEnd(i)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				depth--
			}
			if i++; depth == 0 {
				return i
			}
		}
	}
	for i < len(d.text) && d.text[i] > ' ' && d.text[i] != ',' && d.text[i] != '}' && d.text[i] != ']' {
		i++
	}
	return i
}

// unquoted is the string at s without quotes and escapes: a part of the text, or
// of the scratch, which the next call writes over.
func (d *document) unquoted(s span) []byte {
	raw := d.text[s.from+1 : s.to-1]
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw
	}
	// With room for all of it no copy is left elsewhere: an escape is longer than
	// what it stands for.
	if length := s.to - s.from; cap(d.scratch) < length {
		clear(d.scratch[:cap(d.scratch)])
		d.scratch = make([]byte, 0, 2*length)
	}
	d.scratch, _ = jsontext.AppendUnquote(d.scratch[:0], d.text[s.from:s.to])
	return d.scratch
}

// member is one name of an object and its value, still unread.
type member struct {
	name  []byte
	value span
	read  bool
}

// object is a JSON object being read: each accessor takes a member away, close
// reports what nobody asked for.
type object struct {
	d       *document
	pointer string
	members []member
}

func (d *document) object(pointer string, at span) (object, bool) {
	if d.text[at.from] != '{' {
		d.fault(pointer, CodeWrongType, "must be an object")
		return object{}, false
	}
	first := len(d.members)
	for i := d.space(at.from + 1); d.text[i] != '}'; {
		name := span{i, d.stringEnd(i)}
		i = d.space(d.space(name.to) + 1) // after the colon
		value := span{i, d.valueEnd(i)}
		m := member{name: d.unquoted(name), value: value}
		if len(m.name) != name.to-name.from-2 { // it had escapes
			m.name = bytes.Clone(m.name)
		}
		d.members = append(d.members, m)
		if i = d.space(value.to); d.text[i] == ',' {
			i = d.space(i + 1)
		}
	}
	return object{d: d, pointer: pointer, members: d.members[first:len(d.members):len(d.members)]}, true
}

func (o *object) find(name string) *member {
	for i := range o.members {
		if m := &o.members[i]; string(m.name) == name {
			return m
		}
	}
	return nil
}

// take returns a member's value; null counts as absent.
func (o *object) take(name string) (span, bool) {
	m := o.find(name)
	if m == nil {
		return span{}, false
	}
	m.read = true
	return m.value, o.d.text[m.value.from] != 'n'
}

func (o *object) has(name string) bool {
	m := o.find(name)
	return m != nil && o.d.text[m.value.from] != 'n'
}

func (o *object) at(name string) string { return o.pointer + "/" + name }

func (o *object) require(name string) {
	o.d.fault(o.at(name), CodeRequired, "is required")
}

// text reads an optional string that has to pass rule.
func (o *object) text(name string, rule textRule) string {
	value, ok := o.take(name)
	if !ok {
		return ""
	}
	return o.d.stringAt(o.pointer, name, value, rule)
}

// need reads a required string.
func (o *object) need(name string, rule textRule) string {
	value, ok := o.take(name)
	if !ok {
		o.require(name)
		return ""
	}
	return o.d.stringAt(o.pointer, name, value, rule)
}

func (o *object) flag(name string) bool {
	value, ok := o.take(name)
	if !ok {
		return false
	}
	switch o.d.text[value.from] {
	case 't':
		return true
	case 'f':
		return false
	}
	o.d.fault(o.at(name), CodeWrongType, "must be true or false")
	return false
}

// object reads an optional object member.
func (o *object) object(name string) (object, bool) {
	value, ok := o.take(name)
	if !ok {
		return object{}, false
	}
	return o.d.object(o.at(name), value)
}

// list reads an optional list of at most maxList strings.
func (o *object) list(name string, rule textRule) []string {
	value, ok := o.take(name)
	if !ok {
		return nil
	}
	d, pointer := o.d, o.at(name)
	if d.text[value.from] != '[' {
		d.fault(pointer, CodeWrongType, "must be a list of strings")
		return nil
	}
	var list []string
	for i := d.space(value.from + 1); d.text[i] != ']'; {
		element := span{i, d.valueEnd(i)}
		if len(list) == maxList {
			d.fault(pointer, CodeTooMany, "has more than %d elements", maxList)
			return list
		}
		list = append(list, d.stringAt(pointer, strconv.Itoa(len(list)), element, rule))
		if i = d.space(element.to); d.text[i] == ',' {
			i = d.space(i + 1)
		}
	}
	return list
}

// strings reads an optional object whose members are all strings.
func (o *object) strings(name string, limit int, nameRule, valueRule textRule) map[string]string {
	inner, ok := o.object(name)
	if !ok || len(inner.members) == 0 {
		return nil
	}
	if len(inner.members) > limit {
		o.d.fault(o.at(name), CodeTooMany, "has more than %d members", limit)
		return nil
	}
	m := make(map[string]string, len(inner.members))
	for _, member := range inner.members {
		if findsNumber(o.d.rules.Guard, member.name, nameRule.free) {
			o.d.fault(inner.pointer, CodeCardNumber, "has a member whose name holds what looks like a card number")
			continue
		}
		key := string(member.name)
		if code, _ := nameRule.check(key); code != "" {
			o.d.fault(inner.pointer, CodeInvalidFormat, "has a member whose name is not 1 to 64 of A-Z a-z 0-9 . _ -")
			continue
		}
		at := ""
		if PlainName(key) {
			at = key
		}
		m[key] = o.d.stringAt(inner.pointer, at, member.value, valueRule)
	}
	return m
}

// close reports every member that was not asked for.
func (o *object) close() { o.closeAs("an order") }

func (o *object) closeAs(what string) {
	for _, m := range o.members {
		if m.read {
			continue
		}
		if name := string(m.name); PlainName(name) {
			o.d.fault(o.at(name), CodeUnknownMember, "is not a member of %s", what)
		} else {
			o.d.fault(o.pointer, CodeUnknownMember, "has a member that is not part of %s", what)
		}
	}
}

// stringAt reads the string value that is called name within parent, or that is
// parent itself.
func (d *document) stringAt(parent, name string, value span, rule textRule) string {
	pointer := func() string {
		if name == "" {
			return parent
		}
		return parent + "/" + name
	}
	if d.text[value.from] != '"' {
		d.fault(pointer(), CodeWrongType, "must be a string")
		return ""
	}
	raw := d.unquoted(value)
	if i := controlAt(raw); i >= 0 {
		d.fault(pointer(), CodeInvalidCharacter, "has a control character at position %d", utf8.RuneCount(raw[:i])+1)
		return ""
	}
	if findsNumber(d.rules.Guard, raw, rule.free) { // before it is copied
		d.fault(pointer(), CodeCardNumber, "holds what looks like a card number")
		return ""
	}
	text := d.keep(raw)
	if code, detail := rule.check(text); code != "" {
		d.fault(pointer(), code, "%s", detail)
		return ""
	}
	if rule.name && !d.checkName(pointer, raw) {
		return ""
	}
	return text
}

// keep returns raw as a string. All of them share what kept has grown to.
func (d *document) keep(raw []byte) string {
	from := d.kept.Len()
	d.kept.Write(raw)
	return d.kept.String()[from:]
}

// controlAt is where the first control character of valid UTF-8 stands, -1 when
// there is none.
func controlAt(raw []byte) int {
	for i, c := range raw {
		// U+0080 to U+009F are C2 80 to C2 9F.
		if c < 0x20 || c == 0x7f || c == 0xc2 && raw[i+1] < 0xa0 {
			return i
		}
	}
	return -1
}

// PlainName tells whether a name that came from outside may be repeated in
// an answer: it looks like an identifier and has too few digits for a card
// number, whatever stands between them.
func PlainName(s string) bool {
	code, _ := memberName.check(s)
	return code == "" && digitsIn(s) < shortestPAN
}

func digitsIn(s string) (n int) {
	for i := range len(s) {
		if isDigit(s[i]) {
			n++
		}
	}
	return n
}

// maxPointer is the longest pointer into unknown ground that is repeated.
const maxPointer = 256

// Its parts together have too few digits for a card number, too.
func isPlainPointer(p string) bool {
	if len(p) > maxPointer || digitsIn(p) >= shortestPAN {
		return false
	}
	for part := range strings.SplitSeq(strings.TrimPrefix(p, "/"), "/") {
		if !PlainName(part) {
			return false
		}
	}
	return true
}
