package api

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"errors"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"cardorder/internal/order"
)

// row is one row of an upload: an order as JSON, or what is wrong with it. Its text
// is good until the next one is read.
type row struct {
	line   int64 // in the file, from 1
	text   []byte
	faults order.Faults
}

// A rows reads an upload row by row, in memory that does not grow with it. After the
// last row, next returns io.EOF. A row that is no row comes with its faults, and the
// next one follows; any other error ends the upload.
type rows interface {
	next() (row, error)
	close() // clears the rows' buffer: somebody may have sent card data by mistake
}

var utf8BOM = []byte("\xef\xbb\xbf")

// ndjson reads a JSON text per line.
type ndjson struct {
	r       io.Reader
	broken  error // why r ended before its end
	scanner *bufio.Scanner
	buffer  []byte
	line    int64
	tooLong bool // the line being read; it is passed over
}

func newNDJSON(r io.Reader) *ndjson {
	n := &ndjson{r: r, buffer: make([]byte, maxOrderBody+len(utf8BOM)+1)}
	n.scanner = bufio.NewScanner(n)
	n.scanner.Buffer(n.buffer, len(n.buffer))
	n.scanner.Split(n.split)
	return n
}

// Read reads for the scanner, which calls the break of a connection an end too: what
// came before it is no line.
func (n *ndjson) Read(p []byte) (int, error) {
	read, err := n.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		n.broken = err
	}
	return read, err
}

// split finds the end of a line. Of one that does not fit into the buffer, it keeps
// nothing but the fact.
func (n *ndjson) split(data []byte, atEOF bool) (advance int, token []byte, err error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && (n.broken != nil || len(data) == 0 && !n.tooLong) {
		return 0, nil, nil //nolint:nilerr // next tells of it
	}
	if atEOF {
		return len(data), data, nil
	}
	if len(data) < len(n.buffer) {
		return 0, nil, nil
	}
	n.tooLong = true
	return len(data), nil, nil
}

func (n *ndjson) next() (row, error) {
	for n.scanner.Scan() {
		n.line++
		text := bytes.TrimSuffix(n.scanner.Bytes(), []byte("\r"))
		if n.line == 1 {
			text = bytes.TrimPrefix(text, utf8BOM)
		}
		if n.tooLong || len(text) > maxOrderBody {
			n.tooLong = false
			return row{line: n.line, faults: order.Faults{rowTooLong}}, nil
		}
		if len(bytes.TrimSpace(text)) > 0 {
			return row{line: n.line, text: text}, nil
		}
	}
	if err := n.scanner.Err(); err != nil {
		return row{}, err
	}
	return row{}, io.EOF
}

func (n *ndjson) close() { clear(n.buffer) }

var rowTooLong = order.Fault{Code: order.CodeTooLong, Detail: "is longer than " + strconv.Itoa(maxOrderBody) + " bytes"}

// table reads CSV (RFC 4180) with a header: a column's name is the path of a member of
// an order, its parts with dots between them, elements of lists numbered from 0.
type table struct {
	limit   *recordLimit
	csv     *csv.Reader
	columns []column
	width   int
	text    []byte
}

// column is where a cell's value goes.
type column struct {
	index int      // of the cell
	path  []string // names and numbers
	flag  bool     // true or false, not a text
}

// errRecordTooLong ends an upload: where the next record of CSV begins cannot be told
// without reading this one.
var errRecordTooLong = errors.New("a record is too long")

// recordLimit keeps a record from filling the memory.
type recordLimit struct {
	r      io.Reader
	left   int
	broken error // why there is no more to read, but for the end
}

// csvBuffer is how far csv.Reader reads ahead.
const csvBuffer = 4096

func (l *recordLimit) Read(p []byte) (int, error) {
	if l.left <= 0 {
		l.broken = errRecordTooLong
		return 0, l.broken
	}
	n, err := l.r.Read(p[:min(len(p), l.left)])
	l.left -= n
	if err != nil && !errors.Is(err, io.EOF) {
		l.broken = err
	}
	return n, err
}

func (l *recordLimit) reset() { l.left = maxOrderBody + csvBuffer }

// newTable reads the header. The faults are of the header, the error of the reading.
func newTable(r io.Reader) (*table, order.Faults, error) {
	buffered := bufio.NewReader(r)
	if head, _ := buffered.Peek(len(utf8BOM)); bytes.Equal(head, utf8BOM) { // an error comes again
		_, _ = buffered.Discard(len(utf8BOM))
	}
	t := &table{limit: &recordLimit{r: buffered}}
	t.limit.reset()
	t.csv = csv.NewReader(t.limit)
	t.csv.ReuseRecord = true
	header, err := t.csv.Read()
	if _, ok := errors.AsType[*csv.ParseError](err); ok || errors.Is(err, io.EOF) || errors.Is(err, errRecordTooLong) {
		return nil, order.Faults{{Code: order.CodeInvalidCSV, Detail: "the first line is not a header of CSV"}}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	t.width = len(header)
	t.csv.FieldsPerRecord = -1 // a record of another width is told from one that is not CSV
	var faults order.Faults
	seen := make(map[string]bool)
	for i, name := range header {
		flag, detail := columnOf(name)
		if detail == "" && seen[name] {
			detail = "stands in the header twice"
		}
		seen[name] = true
		if detail != "" {
			fault := order.Fault{Code: order.CodeInvalidCSV, Detail: "column " + strconv.Itoa(i+1) + " " + detail}
			faults = append(faults, fault)
			continue
		}
		t.columns = append(t.columns, column{i, strings.Split(name, "."), flag})
	}
	slices.SortStableFunc(t.columns, func(x, y column) int { return slices.CompareFunc(x.path, y.path, comparePart) })
	return t, faults, nil
}

// comparePart keeps the members of an object together, and numbers in their order.
func comparePart(x, y string) int {
	i, errX := strconv.Atoi(x)
	j, errY := strconv.Atoi(y)
	if errX == nil && errY == nil {
		return i - j
	}
	return strings.Compare(x, y)
}

// columnOf tells what a column holds, or what is wrong with its name.
func columnOf(name string) (flag bool, detail string) {
	if strings.HasPrefix(name, "sensitiveData") {
		return false, "holds card data in clear; a batch takes encryptedData only"
	}
	parts := strings.Split(name, ".")
	for i, part := range parts {
		if n, err := strconv.Atoi(part); err == nil && n >= 0 && n < 100 && strconv.Itoa(n) == part {
			parts[i] = "0"
		}
	}
	if len(parts) == 2 && parts[0] == "metadata" && order.PlainName(strings.TrimPrefix(name, "metadata.")) {
		return false, ""
	}
	kind, known := columnKinds[strings.Join(parts, ".")]
	if !known {
		return false, "is not a member of an order"
	}
	return kind == reflect.Bool, ""
}

// columnKinds are the members of an order, elements of lists as number 0.
var columnKinds = func() map[string]reflect.Kind {
	kinds := map[string]reflect.Kind{
		"cardId": reflect.String, "idempotencyKey": reflect.String, "urgent": reflect.Bool,
		"hold": reflect.Bool, "notBefore": reflect.String,
		"duplicateOverride.reason": reflect.String, "replacesOrderId": reflect.String,
	}
	var walk func(prefix string, t reflect.Type)
	walk = func(prefix string, t reflect.Type) {
		switch t.Kind() {
		case reflect.Pointer:
			walk(prefix, t.Elem())
		case reflect.Slice:
			walk(prefix+".0", t.Elem())
		case reflect.Struct:
			for field := range t.Fields() {
				name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
				walk(strings.TrimPrefix(prefix+"."+name, "."), field.Type)
			}
		default:
			kinds[prefix] = t.Kind()
		}
	}
	walk("", reflect.TypeFor[order.Production]())
	return kinds
}()

func (t *table) next() (row, error) {
	t.limit.reset()
	record, err := t.csv.Read()
	if parse, ok := errors.AsType[*csv.ParseError](err); ok {
		if t.limit.broken != nil { // in the middle of this record, perhaps
			return row{}, t.limit.broken
		}
		return row{line: int64(parse.StartLine), faults: order.Faults{{Code: order.CodeInvalidCSV, Detail: "is not CSV: a quote stands where none may, or is missing"}}}, nil
	}
	if err != nil {
		return row{}, err
	}
	line, _ := t.csv.FieldPos(0)
	r := row{line: int64(line)}
	if len(record) != t.width {
		r.faults = order.Faults{{Code: order.CodeInvalidCSV, Detail: "has another number of cells than the header"}}
		return r, nil
	}
	w := rowWriter{text: t.text[:0], record: record}
	w.members(t.columns, 0)
	t.text, r.text, r.faults = w.text, w.text, w.faults
	return r, nil
}

func (t *table) close() { clear(t.text[:cap(t.text)]) }

// rowWriter writes a record as JSON.
type rowWriter struct {
	text   []byte
	record []string
	faults order.Faults
}

// members writes an object, or a list, from columns whose paths are the same up to
// depth. What has no cell with content is left out.
func (w *rowWriter) members(columns []column, depth int) {
	_, err := strconv.Atoi(columns[0].path[depth])
	list := err == nil && columns[0].path[0] != "metadata" // whose names are the caller's
	opening, closing := byte('{'), byte('}')
	if list {
		opening, closing = '[', ']'
	}
	w.text = append(w.text, opening)
	for i := 0; i < len(columns); {
		part := columns[i].path[depth]
		end := i + 1
		for end < len(columns) && columns[end].path[depth] == part {
			end++
		}
		before := len(w.text)
		if w.text[before-1] != opening {
			w.text = append(w.text, ',')
		}
		if !list {
			w.text, _ = jsontext.AppendQuote(w.text, part) // the header was checked
			w.text = append(w.text, ':')
		}
		if !w.value(columns[i:end], depth+1) {
			w.text = w.text[:before]
		}
		i = end
	}
	w.text = append(w.text, closing)
}

// value writes what stands below a path and tells whether there is something.
func (w *rowWriter) value(columns []column, depth int) bool {
	if len(columns[0].path) > depth {
		filled := slices.ContainsFunc(columns, func(c column) bool { return w.record[c.index] != "" })
		if filled {
			w.members(columns, depth)
		}
		return filled
	}
	c := columns[0]
	cell := w.record[c.index]
	switch {
	case cell == "":
		return false
	case c.flag && (cell == "true" || cell == "false"):
		w.text = append(w.text, cell...)
		return true
	}
	// Any other flag is written as a text, for the rules to refuse.
	text, err := jsontext.AppendQuote(w.text, cell)
	if err != nil {
		w.faults = append(w.faults, order.Fault{Pointer: "/" + strings.Join(c.path, "/"), Code: order.CodeInvalidCharacter, Detail: "is not valid UTF-8"})
		return false
	}
	w.text = text
	return true
}
