package order

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// document reads a JSON text strictly and gathers every fault instead of
// stopping at the first. It never copies the text: values are parts of it.
type document struct {
	text   []byte
	guard  PANGuard
	faults Faults
}

func (d *document) fault(pointer, code, format string, args ...any) {
	d.faults = append(d.faults, Fault{Pointer: pointer, Code: code, Detail: fmt.Sprintf(format, args...)})
}

// root checks the grammar of the whole text (RFC 8259, with duplicate names
// and invalid UTF-8 refused) and returns its one object.
func (d *document) root() (object, bool) {
	dec := jsontext.NewDecoder(bytes.NewBuffer(d.text))
	value, err := dec.ReadValue()
	if err == nil {
		end := dec.InputOffset()
		if len(bytes.TrimLeft(d.text[end:], " \t\r\n")) > 0 {
			d.fault("", CodeInvalidJSON, "there is more after the end of the JSON value, at byte %d", end)
			return object{}, false
		}
		return d.object("", d.slice(end, value))
	}
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
	return object{}, false
}

// slice finds value, which ends at offset end, in the text itself.
func (d *document) slice(end int64, value jsontext.Value) jsontext.Value {
	return d.text[end-int64(len(value)) : end : end]
}

// member is one name of an object and its value, still unread.
type member struct {
	name  string
	value jsontext.Value
	read  bool
}

// object is a JSON object being read: each accessor takes a member away, close
// reports what nobody asked for.
type object struct {
	d       *document
	pointer string
	members []member
}

func (d *document) object(pointer string, value jsontext.Value) (object, bool) {
	if value.Kind() != '{' {
		d.fault(pointer, CodeWrongType, "must be an object")
		return object{}, false
	}
	// The grammar was checked by root: reading the same text again cannot fail.
	dec := jsontext.NewDecoder(bytes.NewBuffer(value))
	inner := &document{text: value}
	o := object{d: d, pointer: pointer}
	_, _ = dec.ReadToken()
	for dec.PeekKind() == '"' {
		name, _ := dec.ReadToken()
		m := member{name: name.String()}
		v, _ := dec.ReadValue()
		m.value = inner.slice(dec.InputOffset(), v)
		o.members = append(o.members, m)
	}
	return o, true
}

// take returns a member's value; null counts as absent.
func (o *object) take(name string) (jsontext.Value, bool) {
	for i := range o.members {
		if m := &o.members[i]; m.name == name {
			m.read = true
			return m.value, m.value.Kind() != 'n'
		}
	}
	return nil, false
}

func (o *object) at(name string) string { return o.pointer + "/" + name }

func (o *object) has(name string) bool {
	for i := range o.members {
		if o.members[i].name == name {
			return o.members[i].value.Kind() != 'n'
		}
	}
	return false
}

func (o *object) require(name string) {
	o.d.fault(o.at(name), CodeRequired, "is required")
}

// text reads an optional string that has to pass rule.
func (o *object) text(name string, rule textRule) string {
	value, ok := o.take(name)
	if !ok {
		return ""
	}
	return o.d.stringAt(o.at(name), value, rule)
}

// need reads a required string.
func (o *object) need(name string, rule textRule) string {
	if !o.has(name) {
		o.take(name)
		o.require(name)
		return ""
	}
	return o.text(name, rule)
}

func (o *object) flag(name string) bool {
	value, ok := o.take(name)
	if !ok {
		return false
	}
	switch value.Kind() {
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
	if value.Kind() != '[' {
		o.d.fault(o.at(name), CodeWrongType, "must be a list of strings")
		return nil
	}
	var list []string
	dec := jsontext.NewDecoder(bytes.NewBuffer(value))
	_, _ = dec.ReadToken()
	for dec.PeekKind() != ']' {
		v, _ := dec.ReadValue()
		if len(list) == maxList {
			o.d.fault(o.at(name), CodeTooMany, "has more than %d elements", maxList)
			return list
		}
		list = append(list, o.d.stringAt(o.at(name)+"/"+strconv.Itoa(len(list)), v, rule))
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
		if code, _ := nameRule.check(member.name); code != "" || o.d.guard.Finds(member.name, nameRule.free) {
			o.d.fault(inner.pointer, CodeInvalidFormat, "has a member whose name is not 1 to 64 of A-Z a-z 0-9 . _ -")
			continue
		}
		pointer := inner.pointer
		if PlainName(member.name) {
			pointer = inner.at(member.name)
		}
		m[member.name] = o.d.stringAt(pointer, member.value, valueRule)
	}
	return m
}

// close reports every member that was not asked for.
func (o *object) close() {
	for _, m := range o.members {
		if m.read {
			continue
		}
		if PlainName(m.name) {
			o.d.fault(o.at(m.name), CodeUnknownMember, "is not a member of an order")
		} else {
			o.d.fault(o.pointer, CodeUnknownMember, "has a member that is not part of an order")
		}
	}
}

func (d *document) stringAt(pointer string, value jsontext.Value, rule textRule) string {
	if value.Kind() != '"' {
		d.fault(pointer, CodeWrongType, "must be a string")
		return ""
	}
	raw, err := jsontext.AppendUnquote(nil, value)
	if err != nil || !utf8.Valid(raw) {
		d.fault(pointer, CodeInvalidCharacter, "is not valid UTF-8")
		return ""
	}
	text := string(raw)
	if i := strings.IndexFunc(text, isControl); i >= 0 {
		d.fault(pointer, CodeInvalidCharacter, "has a control character at position %d", utf8.RuneCountInString(text[:i])+1)
		return ""
	}
	if d.guard.Finds(text, rule.free) {
		d.fault(pointer, CodeCardNumber, "holds what looks like a card number")
		return ""
	}
	if code, detail := rule.check(text); code != "" {
		d.fault(pointer, code, "%s", detail)
		return ""
	}
	return text
}

func isControl(r rune) bool { return r < 0x20 || r >= 0x7f && r < 0xa0 }

// PlainName tells whether a name that came from outside may be repeated in
// an answer: it looks like an identifier and has too few digits for a card
// number, whatever stands between them.
func PlainName(s string) bool {
	code, _ := memberName.check(s)
	digits := 0
	for _, c := range s {
		if isDigit(c) {
			digits++
		}
	}
	return code == "" && digits < shortestPAN
}

// maxPointer is the longest pointer into unknown ground that is repeated.
const maxPointer = 256

func isPlainPointer(p string) bool {
	if len(p) > maxPointer {
		return false
	}
	for part := range strings.SplitSeq(strings.TrimPrefix(p, "/"), "/") {
		if !PlainName(part) {
			return false
		}
	}
	return true
}
