package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/uuid"

	"cardorder/internal/order"
)

// read reads all rows as "line text" or "line code".
func read(in rows) (list []string, err error) {
	for {
		r, err := in.next()
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		text := string(r.text)
		if len(r.faults) > 0 {
			text = r.faults[0].Pointer + r.faults[0].Code
		}
		list = append(list, fmt.Sprint(r.line, " ", text))
	}
}

func TestNDJSON(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxOrderBody)
	for name, c := range map[string]struct{ text, want string }{
		"lines":                    {"{1}\n{2}\n", "1 {1}|2 {2}"},
		"no end of the last line":  {"{1}\n{2}", "1 {1}|2 {2}"},
		"CR LF and blank lines":    {"\r\n{1}\r\n \n\n{2}\r\n", "2 {1}|5 {2}"},
		"a byte order mark":        {"\ufeff{1}\n", "1 {1}"},
		"nothing":                  {"", ""},
		"only a byte order mark":   {"\ufeff", ""},
		"the longest line":         {long + "\n{2}", "1 " + long + "|2 {2}"},
		"a line too long":          {"{1}\n" + long + "x\n{3}\n", "1 {1}|2 too-long|3 {3}"},
		"a line far too long":      {strings.Repeat(long, 5) + "\n{2}\n" + long + "xxxxx", "1 too-long|2 {2}|3 too-long"},
		"a long one after another": {long + long + "\n" + long + long + "\n{3}", "1 too-long|2 too-long|3 {3}"},
	} {
		for how, r := range map[string]io.Reader{
			"at once": strings.NewReader(c.text), "byte by byte": iotest.OneByteReader(strings.NewReader(c.text)),
		} {
			list, err := read(newNDJSON(r))
			if got := strings.Join(list, "|"); err != nil || got != c.want {
				t.Errorf("%s, %s: %.100q, %v", name, how, got, err)
			}
		}
	}
	list, err := read(newNDJSON(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("{1}\n{2}\n")))))
	if len(list) != 0 || !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("a broken connection: %v, %v", list, err)
	}
}

func TestCSV(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ text, want string }{
		"members": {"cardId,urgent,services.issuance\nc1,true,CREATION\n", `2 {"cardId":"c1","services":{"issuance":"CREATION"},"urgent":true}`},
		"empty cells are absent": {
			"shipment.deliveryAddress.city,shipment.deliveryAddress.line1,shipment.type,cardId\n,,,c1\nParis,,,c2\n",
			`2 {"cardId":"c1"}|3 {"cardId":"c2","shipment":{"deliveryAddress":{"city":"Paris"}}}`,
		},
		"lists": {
			"packagingConfig.inserts.10,cardId,packagingConfig.inserts.0,packagingConfig.inserts.2\nten,c1,zero,\n,c2,,\n",
			`2 {"cardId":"c1","packagingConfig":{"inserts":["zero","ten"]}}|3 {"cardId":"c2"}`,
		},
		"quotes, CR LF, byte order mark": {
			"\ufeff\"cardId\",metadata.note\r\nc1,\"a \"\"quoted\"\", cell\"\r\n", `2 {"cardId":"c1","metadata":{"note":"a \"quoted\", cell"}}`,
		},
		"metadata named by numbers": {"cardId,metadata.1,metadata.0\nc1,one,zero\n", `2 {"cardId":"c1","metadata":{"0":"zero","1":"one"}}`},
		"lines within a cell":       {"cardId,metadata.note\nc1,\"a\nb\"\nc2,x\n", `2 {"cardId":"c1","metadata":{"note":"a\nb"}}|4 {"cardId":"c2","metadata":{"note":"x"}}`},
		"not a flag":                {"urgent\nyes\n", `2 {"urgent":"yes"}`},
		"a stray quote":             {"cardId,urgent\nc\"1,true\nc2,true\n", `2 invalid-csv|3 {"cardId":"c2","urgent":true}`},
		"too few cells":             {"cardId,urgent\nc1\nc2,true\n", `2 invalid-csv|3 {"cardId":"c2","urgent":true}`},
		"invalid UTF-8":             {"cardId\n\xff\n", "2 /cardIdinvalid-character"},
		"only a header":             {"cardId\n", ""},
		"blank lines":               {"cardId\n\nc1\n\n", `3 {"cardId":"c1"}`},
	} {
		table, faults, err := newTable(iotest.OneByteReader(strings.NewReader(c.text)))
		if err != nil || len(faults) > 0 {
			t.Errorf("%s: %v, %v", name, faults, err)
			continue
		}
		list, err := read(table)
		if got := strings.Join(list, "|"); err != nil || got != c.want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	for name, header := range map[string]string{
		"nothing": "", "an unknown column": "cardId,colour\n", "a column twice": "cardId,cardId\n", "no column name": "cardId,\n",
		"a number with a sign": "packagingConfig.inserts.-1\n", "a number with a zero before it": "packagingConfig.inserts.01\n",
		"an object": "services\n", "card data in clear": "sensitiveData.pan\n", "a list without a number": "packagingConfig.inserts\n",
		"a member of metadata without a name": "metadata.\n", "a card number": "metadata.4111111111111111\n", "not CSV": "\"card\"Id\n",
		"too long": strings.Repeat("x", 2*maxOrderBody),
	} {
		if _, faults, err := newTable(strings.NewReader(header)); err != nil || len(faults) == 0 {
			t.Errorf("%s: %v, %v", name, faults, err)
		}
	}
	for name, text := range map[string]string{
		"a quote that is never closed": "cardId\n\"" + strings.Repeat("x", 2*maxOrderBody),
		"a record without an end":      "cardId\n" + strings.Repeat("x", 2*maxOrderBody),
	} {
		table, faults, err := newTable(strings.NewReader(text))
		if err != nil || len(faults) > 0 {
			t.Fatal(faults, err)
		}
		if list, err := read(table); !errors.Is(err, errRecordTooLong) || len(list) > 0 {
			t.Errorf("%s: %d rows, %v", name, len(list), err)
		}
	}
}

// Where a record that is too long is no CSV either, the file ends there all the same: what
// follows in its line is no record.
func TestLongRecordThatIsNoCSV(t *testing.T) {
	t.Parallel()
	text := "cardId\nc1\n\"c2\"x" + strings.Repeat("y", 2*maxOrderBody) + "\nc3\n"
	for how, r := range map[string]io.Reader{
		"at once": strings.NewReader(text), "byte by byte": iotest.OneByteReader(strings.NewReader(text)),
	} {
		in, _, err := newTable(r)
		if err != nil {
			t.Fatal(err)
		}
		list, err := read(in)
		if len(list) != 1 || !errors.Is(err, errRecordTooLong) {
			t.Errorf("%s: %d rows, %v", how, len(list), err)
		}
	}
}

// endless is a file that never ends a line.
type endless struct{ left int }

func (e *endless) Read(p []byte) (int, error) {
	if e.left <= 0 {
		return 0, io.EOF
	}
	for i := range p {
		p[i] = 'x'
	}
	e.left -= len(p)
	return len(p), nil
}

// A hundred megabytes without an end of line need no more memory than one line.
func TestLongLinesNeedNoMemory(t *testing.T) { //nolint:paralleltest // it measures memory
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if list, err := read(newNDJSON(&endless{100 << 20})); err != nil || len(list) != 1 {
		t.Errorf("%d rows, %v", len(list), err)
	}
	if table, _, err := newTable(io.MultiReader(strings.NewReader("cardId\n"), &endless{100 << 20})); err != nil {
		t.Error(err)
	} else if _, err := read(table); !errors.Is(err, errRecordTooLong) {
		t.Errorf("CSV: %v", err)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 4<<20 {
		t.Errorf("reading took %d bytes", used)
	}
}

// Every column that the rules know is one of an order: a row with all of them in CSV is
// the row in JSON.
func TestEveryColumn(t *testing.T) {
	t.Parallel()
	var header, cells []string
	for name := range columnKinds {
		header, cells = append(header, name), append(cells, "true")
	}
	table, faults, err := newTable(strings.NewReader(strings.Join(header, ",") + "\n" + strings.Join(cells, ",") + "\n"))
	if err != nil || len(faults) > 0 {
		t.Fatal(faults, err)
	}
	r, err := table.next()
	if err != nil || !json.Valid(r.text) {
		t.Fatalf("%s, %v", r.text, err)
	}
	_, _, rowFaults := order.DecodeRow(r.text, &order.Rules{})
	for _, f := range rowFaults {
		if f.Code == order.CodeUnknownMember || f.Code == order.CodeWrongType {
			t.Errorf("column %s: %s", f.Pointer, f.Detail)
		}
	}
}

// FuzzRows: no file makes a reader panic, hang, or hand out what is not a row.
func FuzzRows(f *testing.F) {
	f.Add("cardId,metadata.note,packagingConfig.inserts.0\nc1,\"a\nb\",x\n")
	f.Add("{\"cardId\":\"c\"}\n\n{}\r\n")
	f.Add("\ufeffcardId\n\"c1\"\n\"c")
	f.Add("cardId,cardId\n\xff,\x00\n")
	f.Add("urgent,services.issuance,shipment.deliveryAddress.line1\ntrue,,\n,,1\n")
	f.Fuzz(func(t *testing.T, text string) {
		lines := int64(strings.Count(text, "\n") + 1)
		check := func(in rows, isJSON bool) {
			var last int64
			for {
				r, err := in.next()
				if err != nil {
					break
				}
				if r.line <= last || r.line > lines {
					t.Fatalf("row in line %d after %d of %d", r.line, last, lines)
				}
				last = r.line
				if len(r.faults) == 0 && isJSON && !json.Valid(r.text) {
					t.Errorf("not JSON: %q", r.text)
				}
				for _, fault := range r.faults {
					if fault.Code == "" || fault.Detail == "" {
						t.Errorf("fault %+v", fault)
					}
				}
			}
			in.close()
		}
		check(newNDJSON(strings.NewReader(text)), false)
		if table, faults, err := newTable(strings.NewReader(text)); err == nil && len(faults) == 0 {
			check(table, true)
		}
	})
}

// FuzzCursor: a cursor is what was given out, and nothing else.
func FuzzCursor(f *testing.F) {
	f.Add(encodeCursor(uuid.MustParse("01a20a68-77ec-74e1-b66d-6c97bb9262a5")))
	f.Add("")
	f.Add("AQ==")
	f.Add("\n")
	f.Fuzz(func(t *testing.T, text string) {
		id, ok := decodeCursor(text)
		if ok && encodeCursor(id) != text {
			t.Errorf("%q and %q are the same place", text, encodeCursor(id))
		}
		if !ok && !bytes.Equal(id[:], make([]byte, 16)) {
			t.Error("a place without a cursor")
		}
	})
}
