package d1client

import (
	"bytes"
	"encoding/json"
	"slices"
	"unicode/utf8"
)

// members is a JSON object read leniently: a member that is missing, or of another
// type than asked for, is empty and never an error. Its values are parts of the text that
// was read, which is looked at once: notifications come by the thousand.
type members []member

type member struct {
	name  []byte
	value []byte // valid JSON without space around it
}

// parseObject reads an object; anything else, and what is not JSON, is none.
func parseObject(raw []byte) (members, bool) {
	if !json.Valid(raw) {
		return nil, false
	}
	return splitObject(nil, raw)
}

// manyMembers is how many members an object has at most, as a rule.
const manyMembers = 12

// splitObject is parseObject for valid JSON. It appends to m, so that a caller whose
// members go no further needs no memory for them.
func splitObject(m members, raw []byte) (members, bool) {
	i := skipSpace(raw, 0)
	if i == len(raw) || raw[i] != '{' {
		return nil, false
	}
	for i = skipSpace(raw, i+1); raw[i] != '}'; {
		var next member
		next, i = nextMember(raw, i)
		m = append(m, next)
	}
	return m, true
}

// splitKnown is splitObject that leaves out members of which operations have none, and
// keeps the last of those with one name: it needs little memory, however many there are.
func splitKnown(m members, raw []byte) (members, bool) {
	i := skipSpace(raw, 0)
	if i == len(raw) || raw[i] != '{' {
		return nil, false
	}
	for i = skipSpace(raw, i+1); raw[i] != '}'; {
		var next member
		if next, i = nextMember(raw, i); !isKnown(next.name) {
			continue
		}
		if at := slices.IndexFunc(m, func(o member) bool { return bytes.Equal(o.name, next.name) }); at >= 0 {
			m[at] = next
		} else {
			m = append(m, next)
		}
	}
	return m, true
}

// isKnown tells whether an operation, its details or its shipment have a member of this
// name that is read.
func isKnown(name []byte) bool {
	switch string(name) {
	case "operationId", "operation", "status", "startTime", "endTime", "cardId", "issuerRequestId", "inputFileName", "errorCode", "details",
		"reason", "productionSite", "trackingType", "dueDate", "shipment",
		"carrier", "trackingNumber", "message", "trackingUrl":
		return true
	}
	return false
}

// nextMember reads the member of an object whose name begins at i, and returns where the
// next one or the object's end is.
func nextMember(raw []byte, i int) (m member, next int) {
	end := skipString(raw, i)
	name := raw[i:end]
	i = skipSpace(raw, skipSpace(raw, end)+1) // a colon
	end = skipValue(raw, i)
	m = member{unquote(name), raw[i:end]}
	if i = skipSpace(raw, end); raw[i] == ',' {
		i = skipSpace(raw, i+1)
	}
	return m, i
}

// Elements calls f with each element of an array, in valid JSON, until it returns false.
// It returns false when raw is no array.
func Elements(raw []byte, f func(element []byte) bool) bool {
	i := skipSpace(raw, 0)
	if i == len(raw) || raw[i] != '[' {
		return false
	}
	for i = skipSpace(raw, i+1); raw[i] != ']'; {
		end := skipValue(raw, i)
		if !f(raw[i:end]) {
			break
		}
		if i = skipSpace(raw, end); raw[i] == ',' {
			i = skipSpace(raw, i+1)
		}
	}
	return true
}

// Notified calls f with each operation in a notification, which must be valid JSON, until
// it returns false. It returns false when there is no list of them. None is lost if there
// is more than one.
func Notified(body []byte, f func(operation []byte) bool) (ok bool) {
	i := skipSpace(body, 0)
	if i == len(body) || body[i] != '{' {
		return false
	}
	goOn := true
	for i = skipSpace(body, i+1); goOn && body[i] != '}'; {
		var m member
		if m, i = nextMember(body, i); string(m.name) == "operations" {
			ok = Elements(m.value, func(operation []byte) bool { goOn = f(operation); return goOn }) || ok
		}
	}
	return ok
}

// skipSpace, skipString and skipValue go over valid JSON and return what they come to.
func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t') {
		i++
	}
	return i
}

func skipString(b []byte, i int) int {
	for i++; b[i] != '"'; i++ {
		if b[i] == '\\' {
			i++
		}
	}
	return i + 1
}

func skipValue(b []byte, i int) int {
	depth := 0
	for {
		switch b[i] {
		case '"':
			i = skipString(b, i)
		case '{', '[':
			depth++
			i++
			continue
		case '}', ']':
			depth--
			i++
		case ',', ':', ' ', '\n', '\r', '\t':
			i++
			continue
		default: // a number or a word
			for i++; i < len(b) && isLetter(b[i]); i++ {
			}
		}
		if depth == 0 {
			return i
		}
	}
}

// isLetter tells whether c goes on with a number or a word.
func isLetter(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c == '.' || c == '-' || c == '+' || c == 'E'
}

// unquote returns the text of a JSON string, which is a part of it where it can be.
func unquote(raw []byte) []byte {
	if plain := raw[1 : len(raw)-1]; bytes.IndexByte(plain, '\\') < 0 && utf8.Valid(plain) {
		return plain
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return nil
	}
	return []byte(s)
}

// raw is a member's value, nil when there is none. Of members with one name the last
// counts.
func (m members) raw(name string) []byte {
	for i := len(m) - 1; i >= 0; i-- {
		if string(m[i].name) == name {
			return m[i].value
		}
	}
	return nil
}

func (m members) str(name string) string {
	raw := m.raw(name)
	if len(raw) == 0 || raw[0] != '"' {
		return ""
	}
	return string(unquote(raw))
}

// has tells whether a member says anything at all, in whatever form.
func (m members) has(name string) bool {
	switch string(m.raw(name)) {
	case "", "null", `""`:
		return false
	}
	return true
}

func (m members) id(name string) string {
	if s := m.str(name); isID(s, maxID) {
		return s
	}
	return ""
}

// object appends the known members of an object to o.
func (m members) object(o members, name string) members {
	o, _ = splitKnown(o, m.raw(name))
	return o
}

const (
	// maxDepth is how deep Canonical goes: each level is gone over again.
	maxDepth = 32
	// maxCanonical is how much it looks at, in bytes: millions of members need a lot of memory.
	maxCanonical = 1 << 20
)

// Canonical writes valid JSON in one form, whatever the order of its members and its
// spacing: names are sorted, numbers stand as they were. What is nested absurdly, or
// absurdly large, stays as it is.
func Canonical(raw []byte) []byte {
	if len(raw) > maxCanonical || depth(raw) > maxDepth {
		return raw
	}
	return appendCanonical(make([]byte, 0, len(raw)), raw[skipSpace(raw, 0):])
}

// depth is how deep a valid value is nested.
func depth(raw []byte) (deepest int) {
	now := 0
	for i := 0; i < len(raw); i++ {
		switch raw[i] {
		case '"':
			i = skipString(raw, i) - 1
		case '{', '[':
			now++
			deepest = max(deepest, now)
		case '}', ']':
			now--
		}
	}
	return deepest
}

// appendCanonical appends a value, which begins at once. Its form is that of
// encoding/json.
func appendCanonical(to, raw []byte) []byte {
	switch raw[0] {
	case '"':
		return appendString(to, raw[:skipString(raw, 0)])
	case '[':
		to = append(to, '[')
		first := true
		Elements(raw, func(element []byte) bool {
			if !first {
				to = append(to, ',')
			}
			first = false
			to = appendCanonical(to, element)
			return true
		})
		return append(to, ']')
	case '{':
		var few [manyMembers]member
		m, _ := splitObject(few[:0], raw)
		// Stable: of members with one name the last counts.
		slices.SortStableFunc(m, func(x, y member) int { return bytes.Compare(x.name, y.name) })
		to = append(to, '{')
		first := true
		for i := range m {
			if i+1 < len(m) && bytes.Equal(m[i+1].name, m[i].name) {
				continue
			}
			if !first {
				to = append(to, ',')
			}
			first = false
			to = append(appendText(to, m[i].name), ':')
			to = appendCanonical(to, m[i].value)
		}
		return append(to, '}')
	}
	return append(to, raw[:skipValue(raw, 0)]...)
}

// appendString appends a JSON string.
func appendString(to, raw []byte) []byte {
	for _, c := range raw[1 : len(raw)-1] {
		if c >= utf8.RuneSelf || c == '\\' || c == '<' || c == '>' || c == '&' {
			return appendText(to, unquote(raw))
		}
	}
	return append(to, raw...)
}

func appendText(to, s []byte) []byte {
	for _, c := range s {
		if c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			text, _ := json.Marshal(string(s)) // a string can always be written
			return append(to, text...)
		}
	}
	return append(append(append(to, '"'), s...), '"')
}
