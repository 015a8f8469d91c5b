package app_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"cardorder/client"
	"cardorder/internal/config"
	"cardorder/internal/d1sim"
)

// An order outside its issuer's agreement is refused at the door, with the name of the
// rule; also in a batch and in a dry run.
func TestOutsideTheProgram(t *testing.T) {
	t.Parallel()
	path, adjust := programsFile(t, goldProgram)
	b := newBank(t, fast, adjust)
	good := b.thales("program")
	abroad := good.with(body{"shipment": body{"deliveryAddress": body{"line1": "1 High Street", "zipCode": "N1", "city": "London", "countryCode": "GB"}}})
	for rule, o := range map[string]body{
		"cardProducts":         good.with(body{"cardProductId": "platinum"}),
		"destinationCountries": abroad,
		"deliveryMethods":      good.with(body{"services": body{"issuance": "CREATION"}}),
		"alphaCard":            good.with(body{"services": body{"issuance": "CREATION", "delivery": "POST", "alphaCard": true}}),
		"paymentApplications":  good.with(body{"paymentApplication": body{"config": "amex", "odaKeyIndex": "1", "derivationKeyIndex": "1"}}),
	} {
		for _, query := range []string{"", "?dryRun=true"} {
			a := b.do(http.MethodPost, orders+query, nil, mustJSON(t, o))
			if a.status != 400 || !strings.Contains(a.text, `"code":"outside-program"`) || !strings.Contains(a.text, `"rule":"`+rule+`"`) {
				t.Errorf("%s%s: %d %s", rule, query, a.status, a.text)
			}
		}
	}
	batch := b.upload("", "abroad", "application/x-ndjson", strings.NewReader(b.lines(abroad)), nil)
	a := b.do(http.MethodGet, batches+"/"+batch.ID+"/results", nil, nil)
	if !strings.Contains(a.text, `"rule":"destinationCountries"`) {
		t.Errorf("the row of a batch: %s", a.text)
	}
	if n := b.stored(); n != 0 {
		t.Errorf("%d orders are stored", n)
	}
	rewrite(t, path, strings.ReplaceAll(goldProgram, "DE]", "DE, GB]"))
	b.env.Service.ReloadPrograms()
	b.await(b.place(abroad), "SHIPPED")
}

// The program says when an order has arrived.
func TestProgramEndsOrders(t *testing.T) {
	t.Parallel()
	_, adjust := programsFile(t, strings.ReplaceAll(goldProgram, "endsAt: SHIPPED", "endsAt: PRODUCED"))
	b := newBank(t, untold, adjust)
	a := b.get(b.place(b.thales("early")))
	if !strings.Contains(a.text, `"endsAt":"PRODUCED"`) {
		t.Errorf("the order ends elsewhere: %s", a.text)
	}
}

// dueAt is when an order is due, which depends on the day.
var dueAt = regexp.MustCompile(`"dueAt":"2[0-9TZ:-]+"`)

// A dry run answers what would happen, and nothing happens.
func TestOrderDryRun(t *testing.T) {
	t.Parallel()
	_, adjust := programsFile(t, goldProgram)
	b := newBank(t, fast, adjust)
	try := func(o body) answer { return b.do(http.MethodPost, orders+"?dryRun=true", nil, mustJSON(t, o)) }
	inClear := b.thales("dry").with(body{"encryptedData": nil, "sensitiveData": body{"pan": testPAN, "exp": "3012", "name": "ADA EXAMPLE"}})
	a := try(inClear)
	want := `{"dryRun":true,"outcome":"accepted","status":"ACCEPTED","endsAt":"SHIPPED","dueAt":"","late":false,"program":"gold","printedName":"ADA EXAMPLE","warnings":[]}`
	if got := dueAt.ReplaceAllString(strings.TrimSpace(a.text), `"dueAt":""`); a.status != 200 || got != want {
		t.Errorf("%d %s", a.status, a.text)
	}
	if n := b.stored(); n != 0 {
		t.Fatalf("%d orders are stored", n)
	}
	id := b.place(inClear)
	if a := try(inClear); a.status != 200 || !strings.Contains(a.text, `"outcome":"replayed","order":"`+id+`"`) {
		t.Errorf("a repeated one: %d %s", a.status, a.text)
	}
	if a := try(inClear.with(body{"issuerRequestId": "other"})); a.status != 409 || a.view.ConflictingOrder != id {
		t.Errorf("one for a card that is taken: %d %s", a.status, a.text)
	}
	for _, query := range []string{"?dryRun=yes", "?dryRun=true&dryRun=true", "?dry=true"} {
		if a := b.do(http.MethodPost, orders+query, nil, mustJSON(t, inClear)); a.status != 400 {
			t.Errorf("%s: %d", query, a.status)
		}
	}
}

// Replacing orders are linked both ways.
func TestReplacingOrders(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	first := b.place(b.thales("lost"))
	second := b.post(b.thales("new").with(body{"replacesOrderId": first}), nil)
	if second.status != 201 || !strings.Contains(second.text, `"replacesOrderId":"`+first+`"`) {
		t.Errorf("the new one: %d %s", second.status, second.text)
	}
	if a := b.get(first); !strings.Contains(a.text, `"replacedByOrderIds":["`+second.view.ID+`"]`) {
		t.Errorf("the old one: %s", a.text)
	}
	for name, id := range map[string]string{"unknown": "01a20a68-77ec-74e1-b66d-6c97bb9262a5", "no id": "x"} {
		a := b.post(b.thales("bad").with(body{"replacesOrderId": id}), nil)
		if a.status != 400 || len(a.view.Errors) != 1 || a.view.Errors[0].Pointer != "/replacesOrderId" {
			t.Errorf("%s: %d %s", name, a.status, a.text)
		}
	}
}

// What was accepted before a restart is recognised after it.
func TestIdempotencySurvivesARestart(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	o := b.thales("restart").with(body{"issuerRequestId": nil})
	key := http.Header{"Idempotency-Key": {"before"}}
	first := b.post(o, key)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := b.env.StopService(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.env.StartService(ctx); err != nil {
		t.Fatal(err)
	}
	if again := b.post(o, key); again.status != 200 || again.view.ID != first.view.ID {
		t.Errorf("after the restart: %d %s", again.status, again.text)
	}
}

// Every filter of the list, alone and with others.
func TestListFilters(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	before := time.Now().Add(-time.Second)
	individual := b.place(b.thales("f1"))
	bulk := b.place(b.thales("f2").with(body{"shipment": body{"type": "BULK", "groupId": "branch-7", "deliveryAddress": body{
		"companyName": "Bank", "line1": "2 High Street", "zipCode": "N1 1AA", "city": "London", "countryCode": "GB",
	}}}))
	instant := b.place(b.thales("f3").with(body{
		"distributionChannel": "INSTANT", "persoStation": "p", "shipment": nil, "services": body{"issuance": "CREATION"}, "cardProductId": "silver",
	}))
	for id, status := range map[string]word{individual: "SHIPPED", bulk: "SHIPPED", instant: "PRODUCED"} {
		b.await(id, status)
	}
	held := b.upload("?hold=true", "filters", "application/x-ndjson", strings.NewReader(b.lines(b.thales("f4"))), nil)
	heldOrder := b.results(held.ID, "")[0].Order
	tracking := b.get(bulk).view.Shipments[0].TrackingNumber
	at := func(t time.Time) string { return url.QueryEscape(t.Format(time.RFC3339Nano)) }
	names := map[string]string{individual: "individual", bulk: "bulk", instant: "instant", heldOrder: "held"}
	for query, want := range map[string]string{
		"":                                 "held instant bulk individual",
		"consumerId=consumer-f1":           "individual",
		"cardProductId=silver":             "instant",
		"distributionChannel=THALES":       "held bulk individual",
		"groupId=branch-7":                 "bulk",
		"groupId=branch-7&status=REJECTED": "",
		"trackingNumber=" + url.QueryEscape(tracking):  "bulk",
		"trackingNumber=none":                          "",
		"batchId=" + held.ID:                           "held",
		"status=HELD":                                  "held",
		"status=HELD&status=PRODUCED":                  "held instant",
		"status=HELD,PRODUCED&cardProductId=gold":      "held",
		"createdFrom=" + at(before):                    "held instant bulk individual",
		"createdTo=" + at(before):                      "",
		"createdFrom=" + at(time.Now().Add(time.Hour)): "",
		"createdFrom=" + at(before) + "&createdTo=" + at(time.Now().Add(time.Minute)) + "&consumerId=consumer-f2": "bulk",
		"attention=true": "",
		"consumerId=consumer-f1&cardId=card-f1&issuerRequestId=request-f1&distributionChannel=THALES&status=SHIPPED": "individual",
	} {
		a := b.do(http.MethodGet, orders+"?"+query, nil, nil)
		var got []string
		for _, raw := range a.view.Data {
			id, _, _ := strings.Cut(strings.TrimPrefix(string(raw), `{"id":"`), `"`)
			got = append(got, names[id])
		}
		if a.status != 200 || strings.Join(got, " ") != want {
			t.Errorf("%s: %d %v, want %s", query, a.status, got, want)
		}
	}
	for _, query := range []string{
		"distributionChannel=MOON", "batchId=x", "createdFrom=yesterday", "createdTo=2026-01-01", "late=yes", "trackingNumber=", "groupId=a&groupId=b",
	} {
		if a := b.do(http.MethodGet, orders+"?"+query, nil, nil); a.status != 400 {
			t.Errorf("%s: %d", query, a.status)
		}
	}
}

// Pages stay right while orders come in: none twice, and none left out that was there
// when the first page was read.
func TestPagesWhileOrdersComeIn(t *testing.T) {
	t.Parallel()
	b := newBank(t, untold, func(cfg *config.Config) { cfg.Issuers[0].Sending.Poll = time.Hour })
	there := make(map[string]bool)
	for i := range 30 {
		there[b.place(b.thales(fmt.Sprint("there-", i)))] = true
	}
	seen, cursor := make(map[string]bool), ""
	for page := 0; ; page++ {
		a := b.do(http.MethodGet, orders+"?limit=7"+cursor, nil, nil)
		for _, raw := range a.view.Data {
			id, _, _ := strings.Cut(strings.TrimPrefix(string(raw), `{"id":"`), `"`)
			if seen[id] {
				t.Errorf("order %s is on two pages", id)
			}
			seen[id] = true
		}
		b.place(b.thales(fmt.Sprint("new-", page)))
		if a.view.NextCursor == nil {
			break
		}
		cursor = "&cursor=" + *a.view.NextCursor
	}
	for id := range there {
		if !seen[id] {
			t.Errorf("order %s is on no page", id)
		}
	}
}

// A batch does not hold up single orders: they are sent first; and it is sent too.
func TestSinglesGoBeforeBatches(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast, func(cfg *config.Config) { cfg.Issuers[0].Sending.Concurrency = 1 })
	var list []body
	for i := range 60 {
		list = append(list, b.thales(fmt.Sprint("many-", i)))
	}
	many := b.upload("?hold=true", "many", "application/x-ndjson", strings.NewReader(b.lines(list...)), nil)
	b.settings(func(s *d1sim.Settings) { s.AnswerDelay = d1sim.Duration(200 * time.Millisecond) })
	b.act(many.ID, "release")
	single := b.place(b.thales("single"))
	b.settings(func(s *d1sim.Settings) { s.AnswerDelay = 0 })
	b.wait(d1sim.Condition{Cards: 61})
	position := query[int](b, `SELECT count(*) FROM attempts a WHERE a.started_at <= (SELECT min(started_at) FROM attempts s WHERE s.order_id = $1)`, single)
	if position > 40 {
		t.Errorf("the single order was number %d of 61", position)
	}
}

// The Go client against the service: batches, dry runs, programs.
func TestClientBatches(t *testing.T) {
	t.Parallel()
	_, adjust := programsFile(t, goldProgram)
	b := newBank(t, fast, adjust)
	c := b.client()
	dry, err := c.DryRun(t.Context(), b.newOrder("dry"), "")
	if err != nil || dry.Outcome != "accepted" || dry.Program != "gold" {
		t.Errorf("dry run: %+v, %v", dry, err)
	}
	list, err := c.Programs(t.Context())
	if err != nil || !list.Configured || len(list.Data) != 2 || list.Data[0].CardProductID != "gold" {
		t.Errorf("programs: %+v, %v", list, err)
	}
	file := b.lines(b.thales("c1"), b.thales("c2"), b.thales("c3").with(body{"cardProductId": "none"}))
	upload := client.Upload{
		IdempotencyKey: "typed", Format: client.FormatNDJSON, Gzip: true, Hold: true,
		Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(file)), nil },
	}
	if dry, err := c.DryRunBatch(t.Context(), upload); err != nil || dry.Rows.Accepted != 2 || len(dry.Refused) != 1 {
		t.Errorf("dry run of a batch: %+v, %v", dry, err)
	}
	batch, err := c.UploadBatch(t.Context(), upload)
	if err != nil || batch.Rows.Accepted != 2 || batch.Rows.Refused != 1 {
		t.Fatalf("upload: %+v, %v", batch, err)
	}
	var orderIDs []string
	for r, err := range c.BatchResults(t.Context(), batch.ID, "") {
		if err != nil {
			t.Fatal(err)
		}
		if r.Outcome == "accepted" {
			orderIDs = append(orderIDs, r.Order)
		} else if len(r.Errors) != 1 || r.Errors[0].Rule != "cardProducts" {
			t.Errorf("result %+v", r)
		}
	}
	if again, err := c.UploadBatch(t.Context(), upload); err != nil || again.ID != batch.ID {
		t.Errorf("again: %+v, %v", again, err)
	}
	if a, err := c.ReleaseBatch(t.Context(), batch.ID); err != nil || a.Changed != 2 {
		t.Errorf("release: %+v, %v", a, err)
	}
	for _, id := range orderIDs {
		b.await(id, "SHIPPED")
	}
}
