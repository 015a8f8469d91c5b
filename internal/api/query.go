package api

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"cardorder/internal/order"
)

// query reads the parameters of a request and gathers everything that is wrong with
// them. One that nobody asked for is a fault: ignoring it would answer another
// question.
type query struct {
	values url.Values
	asked  map[string]bool
	wrong  []fault
}

func newQuery(r *http.Request) *query {
	q := &query{asked: make(map[string]bool)}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		q.wrong = append(q.wrong, fault{Code: order.CodeInvalidFormat, Detail: "the query is not of the form name=value&name=value"})
	}
	q.values = values
	return q
}

func (q *query) bad(name, detail string) {
	q.wrong = append(q.wrong, fault{Parameter: name, Code: order.CodeInvalidValue, Detail: detail})
}

// each hands all values of a parameter to f, which tells what is wrong with one.
func (q *query) each(name string, f func(string) (detail string)) {
	q.asked[name] = true
	for _, value := range q.values[name] {
		if detail := f(value); detail != "" {
			q.bad(name, detail)
			return
		}
	}
}

// read is each for a parameter that may be given once.
func (q *query) read(name string, f func(string) (detail string)) {
	if len(q.values[name]) > 1 {
		q.asked[name] = true
		q.bad(name, "may be given once")
		return
	}
	q.each(name, f)
}

// flag reads a parameter that is true or false.
func (q *query) flag(name string) (set bool) {
	q.read(name, func(v string) string {
		set = v == "true"
		if !set && v != "false" {
			return "must be true or false"
		}
		return ""
	})
	return set
}

// visible reads a parameter that is one of the ids or keys that callers choose.
func (q *query) visible(name string) (value string) {
	q.read(name, func(v string) string {
		value = v
		return order.IdempotencyKey(v) // the widest of them
	})
	return value
}

func (q *query) time(name string) (t time.Time) {
	q.read(name, func(v string) string {
		parsed, err := time.Parse(time.RFC3339, v)
		if err != nil {
			return "must be a time such as 2026-01-31T00:00:00Z, with + written as %2B"
		}
		t = parsed
		return ""
	})
	return t
}

// Page sizes of lists.
const (
	defaultLimit = 50
	maxLimit     = 200
)

// page reads how many elements of a list are asked for, and after which.
func (q *query) page() (limit int, after uuid.UUID) {
	q.read("cursor", func(v string) string {
		id, ok := decodeCursor(v)
		if !ok {
			return notACursor
		}
		after = id
		return ""
	})
	return q.limit(), after
}

const notACursor = "is not a cursor of this list"

// limit reads how many elements of a list are asked for.
func (q *query) limit() int {
	limit := defaultLimit
	q.read("limit", func(v string) string {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > maxLimit {
			return fmt.Sprintf("must be 1 to %d", maxLimit)
		}
		limit = n
		return ""
	})
	return limit
}

// err returns everything that is wrong, or nil.
func (q *query) err() error {
	if wrong := q.faults(); len(wrong) > 0 {
		return invalid(wrong...)
	}
	return nil
}

// faults returns everything that is wrong.
func (q *query) faults() []fault {
	for name := range q.values {
		if q.asked[name] {
			continue
		}
		unknown := fault{Code: order.CodeUnknownMember, Detail: "is not a parameter here"}
		if order.PlainName(name) {
			unknown.Parameter = name
		}
		q.wrong = append(q.wrong, unknown)
	}
	slices.SortStableFunc(q.wrong, func(x, y fault) int { return cmp.Compare(x.Parameter, y.Parameter) })
	return q.wrong
}

// page is a part of a list; NextCursor leads to the next one, and is null at
// the end.
type page[T any] struct {
	Data       []T     `json:"data"`
	NextCursor *string `json:"nextCursor"`
}

// pageOf makes a page of at most limit elements from a list, in the order of their ids,
// that may have one more.
func pageOf[E, V any](list []E, limit int, view func(E) V, id func(E) uuid.UUID) page[V] {
	return pageBy(list, limit, view, func(e E) string { return encodeCursor(id(e)) })
}

// pageBy does the same for a list in another order, of which cursor names a place.
func pageBy[E, V any](list []E, limit int, view func(E) V, cursor func(E) string) page[V] {
	var p page[V]
	if len(list) > limit {
		list = list[:limit]
		next := cursor(list[limit-1])
		p.NextCursor = &next
	}
	p.Data = make([]V, len(list))
	for i, e := range list {
		p.Data[i] = view(e)
	}
	return p
}

// A cursor is the id of the last element of a page, in a form that nobody takes for
// one. The first byte is its version.
const cursorVersion = 1

func encodeCursor(id uuid.UUID) string { return writeCursor(cursorVersion, id[:]) }

func decodeCursor(text string) (id uuid.UUID, ok bool) {
	ok = readCursor(text, cursorVersion, id[:])
	return id, ok && id != uuid.Nil // which would be the first page
}

func writeCursor(version byte, place []byte) string {
	return base64.RawURLEncoding.EncodeToString(append([]byte{version}, place...))
}

// readCursor reads a cursor of a version into place, which has the length that it must have.
func readCursor(text string, version byte, place []byte) bool {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	// The decoder skips line breaks, of which a cursor has none.
	if err != nil || len(b) != 1+len(place) || b[0] != version || len(text) != base64.RawURLEncoding.EncodedLen(len(b)) {
		return false
	}
	copy(place, b[1:])
	return true
}
