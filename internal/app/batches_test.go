package app_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"cardorder/internal/config"
	"cardorder/internal/d1sim"
	"cardorder/internal/local"
)

const batches = "/v1/issuers/" + local.IssuerID + "/order-batches"

// batch is what the API says of a batch.
type batch struct {
	ID, Status, Format, CreatedBy string
	Hold                          bool
	Rows                          struct{ Read, Accepted, Replayed, Refused int }
	CompletedAt                   *time.Time
	Type, Title, ConflictingBatch string
	Errors                        []struct{ Pointer, Header, Parameter, Code, Detail string }
	Data                          []batch
	Refused                       []result
	Batch                         *batch
	Changed, Unchanged, TooLate   int
	status                        int
	header                        http.Header
	text                          string
}

// UnmarshalJSON lets status be a number, as problems have it.
func (b *batch) UnmarshalJSON(text []byte) error {
	type plain batch
	var v struct {
		plain
		Status word
	}
	if err := json.Unmarshal(text, &v); err != nil {
		return err
	}
	*b = batch(v.plain)
	b.Status = string(v.Status)
	return nil
}

// result is what the API says of a row.
type result struct {
	Line                                                       int
	Outcome, Order, IssuerRequestID, Problem, ConflictingOrder string
	Warnings                                                   []string
	Errors                                                     []struct{ Pointer, Code string }
}

// upload sends a file as a batch.
func (b *bank) upload(query, key, mediaType string, file io.Reader, more http.Header) batch {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, b.env.Ready.APIURL+batches+query, file)
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+b.env.Ready.Token)
	r.Header.Set("Content-Type", mediaType)
	r.Header.Set("Idempotency-Key", key)
	for name, values := range more {
		r.Header[name] = values
	}
	res, err := (&http.Client{Transport: contract{b.t}}).Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	return b.batch(res)
}

func (b *bank) batch(res *http.Response) batch {
	b.t.Helper()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	var a batch
	if err := json.Unmarshal(text, &a); err != nil {
		b.t.Fatalf("answered %d with what is not JSON: %.200q", res.StatusCode, text)
	}
	a.status, a.header, a.text = res.StatusCode, res.Header, string(text)
	return a
}

func (b *bank) lines(orders ...body) string {
	b.t.Helper()
	var file strings.Builder
	for _, o := range orders {
		file.Write(mustJSON(b.t, o))
		file.WriteByte('\n')
	}
	return file.String()
}

func (b *bank) getBatch(path string) batch {
	b.t.Helper()
	a := b.do(http.MethodGet, batches+path, nil, nil)
	var got batch
	if err := json.Unmarshal([]byte(a.text), &got); err != nil {
		b.t.Fatal(err)
	}
	got.status = a.status
	return got
}

func (b *bank) act(id, action string) batch {
	b.t.Helper()
	a := b.do(http.MethodPost, batches+"/"+id+"/"+action, nil, nil)
	var got batch
	if err := json.Unmarshal([]byte(a.text), &got); err != nil {
		b.t.Fatal(err)
	}
	got.status = a.status
	return got
}

func (b *bank) results(id, query string) []result {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), http.MethodGet, b.env.Ready.APIURL+batches+"/"+id+"/results"+query, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+b.env.Ready.Token)
	res, err := (&http.Client{Transport: contract{b.t}}).Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "application/x-ndjson" {
		b.t.Fatalf("results: %d %s", res.StatusCode, res.Header.Get("Content-Type"))
	}
	var list []result
	for dec := json.NewDecoder(res.Body); ; {
		var one result
		err := dec.Decode(&one)
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			b.t.Fatal(err)
		}
		list = append(list, one)
	}
}

// A batch with all that can become of a row: its orders are made like any other.
func TestBatch(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	single := b.place(b.thales("single"))
	file := b.lines(
		b.thales("one"),
		b.thales("single"), // known
		b.thales("two").with(body{"cardId": "has space", "colour": "red"}),
		b.thales("three").with(body{"issuerRequestId": nil}), // no key
		b.thales("four").with(body{"issuerRequestId": nil, "idempotencyKey": "row-4", "services": body{"issuance": "RENEWAL", "delivery": "POST"}}),
		b.thales("five").with(body{"cardId": "card-one"}), // the card has an order
		b.thales("six").with(body{"encryptedData": nil, "sensitiveData": body{"pan": testPAN, "exp": "3012"}}),
	) + "\n{\"cardId\":\n" + b.lines(b.thales("seven"))
	a := b.upload("", "campaign-1", "application/x-ndjson", strings.NewReader(file), nil)
	if a.status != 201 || a.Status != "COMPLETED" || a.header.Get("Location") != batches+"/"+a.ID || a.Rows != (struct{ Read, Accepted, Replayed, Refused int }{9, 3, 1, 5}) {
		t.Fatalf("%d %s", a.status, a.text)
	}
	var got []string
	for _, r := range b.results(a.ID, "") {
		line := fmt.Sprint(r.Line, " ", r.Outcome, " ", strings.TrimPrefix(r.Problem, "urn:cardorder:problem:"))
		for _, e := range r.Errors {
			line += " " + e.Pointer + " " + e.Code
		}
		got = append(got, line)
	}
	want := []string{
		"1 accepted ", "2 replayed ", "3 refused invalid-request /cardId invalid-format /colour unknown-member",
		"4 refused invalid-request /issuerRequestId required", "5 accepted ", "6 refused duplicate-order",
		"7 refused invalid-request /sensitiveData not-allowed /encryptedData required", "9 refused invalid-request /cardId invalid-json", "10 accepted ",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("results:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	results := b.results(a.ID, "?outcome=replayed")
	if len(results) != 1 || results[0].Order != single || results[0].IssuerRequestID != "request-single" {
		t.Errorf("replayed: %+v", results)
	}
	accepted := b.results(a.ID, "?outcome=accepted")
	if fmt.Sprint(accepted[1].Warnings) != "[card-never-ordered-here]" {
		t.Errorf("accepted: %+v", accepted)
	}
	for _, r := range accepted {
		b.await(r.Order, "SHIPPED")
		b.noGaps(r.Order)
	}
	list := b.do(http.MethodGet, orders+"?batchId="+a.ID, nil, nil)
	if len(list.view.Data) != 3 || !strings.Contains(string(list.view.Data[0]), accepted[2].Order) {
		t.Errorf("orders of the batch: %s", list.text)
	}
	if one := b.getBatch("/" + a.ID); one.Status != "COMPLETED" || one.CreatedBy != "local" {
		t.Errorf("the batch: %+v", one)
	}
	if found := b.getBatch("?idempotencyKey=campaign-1"); len(found.Data) != 1 || found.Data[0].ID != a.ID {
		t.Errorf("the batch by its key: %+v", found)
	}
	if !strings.Contains(b.metrics(), `cardorder_batch_rows_total{issuer="ISSUER0001",outcome="refused"} 5`) {
		t.Error("the metrics lack the refused rows")
	}

	again := b.upload("", "campaign-1", "application/x-ndjson", strings.NewReader(file), nil)
	if again.status != 200 || again.header.Get("Idempotent-Replayed") != "true" || again.ID != a.ID {
		t.Errorf("the same again: %d %s", again.status, again.text)
	}
	for name, other := range map[string]string{"a longer file": file + b.lines(b.thales("eight")), "a shorter file": file[:strings.Index(file, "\n")+1], "another file": b.lines(b.thales("nine"))} {
		if c := b.upload("", "campaign-1", "application/x-ndjson", strings.NewReader(other), nil); c.status != 422 || c.ConflictingBatch != a.ID {
			t.Errorf("%s: %d %s", name, c.status, c.text)
		}
	}
	if n := b.stored(); n != 4 {
		t.Errorf("%d orders are stored, want 4", n)
	}
}

// A batch as CSV, zipped, comes to the same orders as in JSON.
func TestBatchAsCSV(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	var text bytes.Buffer
	zip := gzip.NewWriter(&text)
	_, _ = zip.Write([]byte("\ufeff"))
	w := csv.NewWriter(zip)
	rows := [][]string{
		{
			"cardId", "issuerRequestId", "consumerId", "cardProductId", "distributionChannel", "services.issuance", "services.delivery",
			"paymentApplication.config", "paymentApplication.odaKeyIndex", "paymentApplication.derivationKeyIndex",
			"shipment.deliveryAddress.line1", "shipment.deliveryAddress.zipCode", "shipment.deliveryAddress.city", "shipment.deliveryAddress.countryCode",
			"encryptedData", "urgent", "metadata.campaign", "services.packaging", "packagingConfig.inserts.0", "packagingConfig.inserts.1",
		},
		{
			"csv-1", "csv-1", "consumer", "gold", "THALES", "CREATION", "POST", "visa", "01", "01", "1, \"Rue\" de la Paix", "75002", "Paris", "FR",
			b.jwe(), "true", "spring", "BOX", "leaflet", "gift",
		},
		{
			"csv-2", "csv-2", "consumer", "gold", "THALES", "CREATION", "POST", "visa", "01", "01", "1 Rue de la Paix", "75002", "Paris", "FRANCE",
			b.jwe(), "", "", "", "", "",
		},
	}
	if err := w.WriteAll(rows); err != nil {
		t.Fatal(err)
	}
	if err := zip.Close(); err != nil {
		t.Fatal(err)
	}
	a := b.upload("", "csv", "text/csv; charset=UTF-8", &text, http.Header{"Content-Encoding": {"gzip"}})
	if a.status != 201 || a.Rows.Accepted != 1 || a.Rows.Refused != 1 || a.Format != "csv" {
		t.Fatalf("%d %s", a.status, a.text)
	}
	results := b.results(a.ID, "")
	if results[0].Line != 2 || len(results[1].Errors) != 1 || results[1].Errors[0].Pointer != "/shipment/deliveryAddress/countryCode" {
		t.Errorf("results %+v", results)
	}
	o := b.await(results[0].Order, "SHIPPED")
	for _, want := range []string{`"inserts":["leaflet","gift"]`, `"urgent":true`, `"campaign":"spring"`, `"batchId":"` + a.ID + `"`} {
		if !strings.Contains(o.text, want) {
			t.Errorf("the order lacks %s: %s", want, o.text)
		}
	}
}

func zipped(text string) string {
	var b strings.Builder
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte(text))
	_ = w.Close()
	return b.String()
}

// An upload that cannot be right is refused whole.
func TestBadBatches(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	good := b.lines(b.thales("good"))
	header := func(name, value string) http.Header { return http.Header{name: {value}} }
	for name, c := range map[string]struct {
		query, mediaType, file string
		header                 http.Header
		status                 int
		want                   string
	}{
		"no key":                  {"", "application/x-ndjson", good, http.Header{"Idempotency-Key": nil}, 400, "Idempotency-Key"},
		"a card number":           {"", "application/x-ndjson", good, header("Idempotency-Key", testPAN), 400, "card-number"},
		"a JSON document":         {"", "application/json", good, nil, 415, "unsupported-media-type"},
		"another charset":         {"", "text/csv; charset=latin1", good, nil, 415, "unsupported-media-type"},
		"another encoding":        {"", "application/x-ndjson", good, header("Content-Encoding", "br"), 415, "unsupported-media-type"},
		"not gzip":                {"", "application/x-ndjson", good, header("Content-Encoding", "gzip"), 400, "gzip"},
		"an empty gzip":           {"", "application/x-ndjson", "", header("Content-Encoding", "gzip"), 400, "gzip"},
		"a cut gzip":              {"", "application/x-ndjson", zipped(good)[:60], header("Content-Encoding", "gzip"), 400, "gzip"},
		"gzip and more":           {"", "application/x-ndjson", zipped("") + "more", header("Content-Encoding", "gzip"), 400, "gzip"},
		"no header of CSV":        {"", "text/csv", "", nil, 400, "invalid-csv"},
		"an unknown column":       {"", "text/csv", "cardId,colour\nc,red\n", nil, 400, "column 2"},
		"an unknown query":        {"?colour=red", "application/x-ndjson", good, nil, 400, "colour"},
		"a query of no value":     {"?hold=yes", "application/x-ndjson", good, nil, 400, "hold"},
		"no token":                {"", "application/x-ndjson", good, header("Authorization", ""), 401, "unauthorized"},
		"a record without an end": {"", "text/csv", "cardId\n\"" + strings.Repeat("x", 1<<20), nil, 400, "too-long"},
	} {
		a := b.upload(c.query, strings.ReplaceAll(name, " ", "-"), c.mediaType, strings.NewReader(c.file), c.header)
		if a.status != c.status || !strings.Contains(a.text, c.want) || strings.Contains(a.text, testPAN) {
			t.Errorf("%s: %d %s", name, a.status, a.text)
		}
	}
	if n := b.stored(); n != 0 {
		t.Errorf("%d orders are stored", n)
	}
	// A batch of which nothing was read may still become another one.
	if a := b.upload("?hold=true", "a-record-without-an-end", "application/x-ndjson", strings.NewReader(good), nil); a.status != 201 || !a.Hold || a.Format != "ndjson" {
		t.Errorf("another file for a batch without rows: %d %s", a.status, a.text)
	}
	for _, path := range []string{"/01a20a68-77ec-74e1-b66d-6c97bb9262a5", "/x"} {
		for _, a := range []batch{b.getBatch(path), b.getBatch(path + "/results"), b.act(path[1:], "hold")} {
			if a.status != 404 || a.Type != "urn:cardorder:problem:unknown-batch" {
				t.Errorf("%s: %d %s", path, a.status, a.Type)
			}
		}
	}
}

// A broken connection leaves what was read; the same file goes on from there, also
// after a restart.
func TestBatchGoesOn(t *testing.T) {
	t.Parallel()
	b := newBank(t, untold, func(cfg *config.Config) { cfg.Issuers[0].Sending.Poll = time.Hour })
	var file strings.Builder
	jwe := b.jwe()
	for i := range 1300 {
		file.WriteString(b.lines(b.thales(fmt.Sprint("row-", i)).with(body{"encryptedData": jwe})))
	}
	cut := func(at int, ending func(*io.PipeWriter)) {
		r, w := io.Pipe()
		go func() {
			_, _ = io.WriteString(w, file.String()[:at])
			ending(w)
		}()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.env.Ready.APIURL+batches, r)
		if err != nil {
			t.Error(err)
			return
		}
		req.Header = http.Header{
			"Authorization": {"Bearer " + b.env.Ready.Token}, "Content-Type": {"application/x-ndjson"}, "Idempotency-Key": {"campaign"},
		}
		if res, err := http.DefaultClient.Do(req); err == nil {
			_ = res.Body.Close()
		}
	}
	lineEnd := func(n int) int { // the byte after line n
		at := 0
		for range n {
			at += strings.IndexByte(file.String()[at:], '\n') + 1
		}
		return at
	}
	// In the middle of a line.
	cut(lineEnd(700)+40, func(w *io.PipeWriter) { _ = w.CloseWithError(errors.New("cable cut")) })
	var found batch
	b.eventually("the batch is interrupted", func() bool {
		list := b.getBatch("?idempotencyKey=campaign")
		if len(list.Data) == 1 {
			found = list.Data[0]
		}
		return found.Status == "INTERRUPTED"
	})
	if found.Rows.Read != 700 || b.stored() != 700 {
		t.Errorf("after the cut: %+v, %d orders", found, b.stored())
	}

	// A restart in the middle: the upload ends with what is stored.
	gone, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		cut(lineEnd(1200), func(w *io.PipeWriter) { // sends no more until the server is gone
			<-gone
			_ = w.CloseWithError(errors.New("nobody there"))
		})
	}()
	b.eventually("the upload went on", func() bool { return b.getBatch("/"+found.ID).Rows.Read >= 1000 })
	if busy := b.upload("", "campaign", "application/x-ndjson", strings.NewReader(file.String()), nil); busy.status != 409 || busy.header.Get("Retry-After") == "" || !strings.HasSuffix(busy.Type, "batch-in-progress") {
		t.Errorf("another upload beside it: %d %s", busy.status, busy.text)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_ = b.env.StopService(short) // the stalled upload does not let it drain
	close(gone)
	<-stopped
	if err := b.env.StartService(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.eventually("the batch is interrupted again", func() bool { return b.getBatch("/"+found.ID).Status == "INTERRUPTED" })

	done := b.upload("", "campaign", "application/x-ndjson", strings.NewReader(file.String()), nil)
	if done.status != 201 || done.ID != found.ID || done.Rows.Read != 1300 || done.Rows.Accepted != 1300 || b.stored() != 1300 {
		t.Errorf("in the end: %d %s, %d orders", done.status, done.text, b.stored())
	}
}

// A held batch is not sent; it is released, or cancelled, whole.
func TestHeldBatch(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	held := b.upload("?hold=true", "held", "application/x-ndjson", strings.NewReader(b.lines(b.thales("h1"), b.thales("h2"))), nil)
	if held.status != 201 || !held.Hold {
		t.Fatalf("%d %s", held.status, held.text)
	}
	marker := b.place(b.thales("marker"))
	b.await(marker, "SHIPPED") // what could be sent was
	if n := b.cards("request-h1") + b.cards("request-h2"); n != 0 {
		t.Errorf("%d cards of a held batch", n)
	}
	if a := b.act(held.ID, "release"); a.status != 200 || a.Changed != 2 || a.Batch == nil || a.Batch.ID != held.ID {
		t.Errorf("release: %+v", a)
	}
	b.wait(d1sim.Condition{Cards: 3})
	for _, r := range b.results(held.ID, "") {
		b.await(r.Order, "SHIPPED")
		b.noGaps(r.Order)
	}
	if a := b.act(held.ID, "cancel"); a.Changed != 0 || a.TooLate != 2 {
		t.Errorf("a cancel that comes too late: %+v", a)
	}

	cancelled := b.upload("?hold=true", "cancelled", "application/x-ndjson", strings.NewReader(b.lines(b.thales("c1"), b.thales("c2"))), nil)
	if a := b.act(cancelled.ID, "cancel"); a.Changed != 2 || a.Batch.Status != "CANCELLED" {
		t.Errorf("cancel: %+v", a)
	}
	if a := b.upload("?hold=true", "cancelled", "application/x-ndjson", strings.NewReader(""), nil); a.status != 409 || !strings.HasSuffix(a.Type, "batch-cancelled") {
		t.Errorf("an upload to a cancelled batch: %d %s", a.status, a.text)
	}
	b.place(b.thales("c1").with(body{"issuerRequestId": "again"})) // its card is free
	reader := b.do(http.MethodGet, orders+"?batchId="+cancelled.ID+"&status=CANCELLED", nil, nil)
	if len(reader.view.Data) != 2 {
		t.Errorf("cancelled orders: %s", reader.text)
	}
}

// A dry run of a batch tells what would happen and stores nothing.
func TestBatchDryRun(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	known := b.place(b.thales("known"))
	file := b.lines(b.thales("known"), b.thales("new"), b.thales("bad").with(body{"cardId": nil}), b.thales("taken").with(body{"cardId": "card-known"}),
		b.thales("twice").with(body{"cardId": "card-new"}))
	a := b.upload("?dryRun=true", "dry", "application/x-ndjson", strings.NewReader(file), nil)
	if a.status != 200 || a.Rows != (struct{ Read, Accepted, Replayed, Refused int }{5, 1, 1, 3}) || len(a.Refused) != 3 ||
		a.Refused[0].Line != 3 || a.Refused[0].Errors[0].Pointer != "/cardId" || !strings.HasSuffix(a.Refused[1].Problem, "duplicate-order") ||
		a.Refused[1].ConflictingOrder != known || !strings.HasSuffix(a.Refused[2].Problem, "duplicate-order") || a.Refused[2].ConflictingOrder != "" {
		t.Errorf("%d %s", a.status, a.text)
	}
	if list := b.getBatch(""); b.stored() != 1 || len(list.Data) != 0 {
		t.Errorf("%d orders, %d batches", b.stored(), len(list.Data))
	}
}
