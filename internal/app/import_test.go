package app_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"cardorder/internal/app"
	"cardorder/internal/config"
	"cardorder/internal/d1client"
	"cardorder/internal/d1sim"
	"cardorder/internal/local"
	"cardorder/internal/order"
)

// older places an order at D1 as an older system did, and returns D1's operation.
func (b *bank) older(o body) string {
	b.t.Helper()
	cfg, err := b.env.ServiceConfig().Issuers[0].ClientConfig("development")
	if err != nil {
		b.t.Fatal(err)
	}
	d1, err := d1client.New(cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	defer d1.Close()
	card, _ := o["cardId"].(string)
	content, err := json.Marshal(o.with(body{"cardId": nil}))
	if err != nil {
		b.t.Fatal(err)
	}
	a := d1.Produce(b.t.Context(), d1client.Call{CardID: card, CorrelationID: "older-" + card, Body: content})
	if a.Outcome != d1client.Taken {
		b.t.Fatalf("D1 did not take it: %+v", a)
	}
	return a.OperationID
}

// take imports a file, and returns its summary and the faults by line.
func (b *bank) take(file string, csv, dryRun bool) (app.ImportSummary, map[int]order.Faults) {
	b.t.Helper()
	faults := make(map[int]order.Faults)
	sum, err := app.Import(b.t.Context(), b.env.ServiceConfig(), slog.New(slog.DiscardHandler), app.ImportJob{
		IssuerID: local.IssuerID, File: strings.NewReader(file), CSV: csv, DryRun: dryRun,
		Refused: func(line int, f order.Faults) { faults[line] = f },
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return sum, faults
}

func (b *bank) byCard(card string) answer {
	b.t.Helper()
	a := b.do(http.MethodGet, orders+"?cardId="+card, nil, nil)
	if len(a.view.Data) != 1 {
		b.t.Fatalf("orders of %s: %s", card, a.text)
	}
	var o struct{ ID string }
	if err := json.Unmarshal(a.view.Data[0], &o); err != nil {
		b.t.Fatal(err)
	}
	return b.get(o.ID)
}

// What an older system placed at D1 is taken over, never sent, and moved by D1's
// notifications, whether they come before or after.
func TestImport(t *testing.T) {
	t.Parallel()
	sim := fast
	sim.StopAt = d1sim.CardProdOngoing
	b := newBank(t, sim, func(cfg *config.Config) { cfg.Issuers[0].Sending.Poll = 1e9 })
	// By both ids, by D1's alone (with notifications that name no request), by ours alone.
	both, byOperation := b.older(b.thales("both")), b.older(b.thales("operation"))
	b.older(b.thales("request"))
	b.eventually("all that D1 told so far is parked", func() bool {
		return query[int](b, `SELECT count(*) FROM notifications WHERE outcome = 'parked'`) == 12
	})
	file := fmt.Sprintf(`{"cardId":"card-both","operationId":%q,"issuerRequestId":"request-both","status":"CARD_PROD_READY","consumerId":"consumer-both","cardProductId":"gold","issuance":"CREATION","distributionChannel":"THALES"}
{"cardId":"card-operation","operationId":%q,"status":"SUBMITTED"}

{"cardId":"card-request","issuerRequestId":"request-request","status":"SUBMITTED"}
{"cardId":"card-shipped","operationId":"long-ago","status":"CARD_SHIPPED"}
`, both, byOperation)
	if sum, faults := b.take(file, false, true); sum != (app.ImportSummary{Read: 4, Imported: 4}) || len(faults) > 0 {
		t.Errorf("dry run: %+v %v", sum, faults)
	}
	if n := query[int](b, `SELECT count(*) FROM orders`); n != 0 {
		t.Fatalf("a dry run left %d orders", n)
	}
	if sum, faults := b.take(file, false, false); sum != (app.ImportSummary{Read: 4, Imported: 4}) || len(faults) > 0 {
		t.Errorf("import: %+v %v", sum, faults)
	}
	again := query[string](b, `SELECT string_agg(order_id || status || version, ',' ORDER BY order_id) FROM order_state WHERE status = 'SHIPPED'`)
	if sum, _ := b.take(file, false, false); sum != (app.ImportSummary{Read: 4, Known: 4}) {
		t.Errorf("the same again: %+v", sum)
	}
	if now := query[string](b, `SELECT string_agg(order_id || status || version, ',' ORDER BY order_id) FROM order_state WHERE status = 'SHIPPED'`); now != again {
		t.Errorf("the same again changed %s to %s", again, now)
	}

	// What was parked is applied, what follows as well.
	ids := map[string]string{}
	for _, name := range []string{"both", "operation", "request"} {
		ids[name] = b.byCard("card-" + name).view.ID
		b.await(ids[name], "IN_PRODUCTION")
	}
	if a := b.byCard("card-both"); !strings.Contains(a.text, `"imported":true`) || a.view.OperationID != both || len(a.view.Attention) > 0 {
		t.Errorf("imported: %s", a.text)
	}

	// Asking works, sending again does not, and the card is guarded.
	if a := b.do(http.MethodPost, orders+"/"+ids["both"]+"/refresh", nil, nil); a.status != http.StatusAccepted {
		t.Errorf("refresh: %d %s", a.status, a.text)
	}
	b.eventually("D1 was asked", func() bool {
		return query[int](b, `SELECT count(*) FROM attempts WHERE order_id = $1 AND kind = 'ask' AND outcome = 'found'`, ids["both"]) == 1
	})
	if a := b.do(http.MethodPost, orders+"/"+ids["both"]+"/retry", nil, []byte(`{}`)); a.status != http.StatusConflict {
		t.Errorf("retry: %d %s", a.status, a.text)
	}
	if a := b.post(b.thales("both").with(body{"issuerRequestId": "another"}), nil); a.status != http.StatusConflict || a.view.ConflictingOrder != ids["both"] {
		t.Errorf("another order of the card: %d %s", a.status, a.text)
	}
	if a := b.post(b.thales("both"), nil); a.status != http.StatusUnprocessableEntity || a.view.ConflictingOrder != ids["both"] {
		t.Errorf("the same order here: %d %s", a.status, a.text)
	}

	b.settings(func(s *d1sim.Settings) { s.StopAt = "" })
	for _, id := range ids {
		b.await(id, "SHIPPED")
		b.noGaps(id)
	}
	for name, id := range ids {
		b.oneCard("request-" + name)
		if n := query[int](b, `SELECT count(*) FROM attempts WHERE order_id = $1 AND kind = 'submit'`, id); n != 0 {
			t.Errorf("%s was sent %d times", name, n)
		}
	}
	if n := query[int](b, `SELECT count(*) FROM card_guard WHERE order_ids <> '{}'`); n != 0 {
		t.Errorf("%d cards are held by orders that have ended", n)
	}
	if first := query[string](b, `SELECT type || ' ' || status || ' ' || cause || ' ' || actor FROM order_events WHERE order_id = $1 AND seq = 1`, ids["both"]); first != "imported READY import server import" {
		t.Errorf("the first event: %s", first)
	}
}

// Each line is judged by itself, and no fault repeats a value.
func TestImportFaults(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	place := b.thales("here")
	here := b.place(place)
	operation := b.await(here, "SHIPPED").view.OperationID
	lines := []struct {
		line, pointer, code string // no pointer and code: imported
	}{
		{"cardId,operationId,issuerRequestId,status,distributionChannel,issuance", "", ""}, // the header
		{"card-1,op-1,r-1,SUBMITTED,,", "", ""},
		{"card-2,op-2,,DELIVERED,CENTRAL,RENEWAL", "", ""},
		{",op-3,,SUBMITTED,,", "/cardId", order.CodeRequired},
		{"card-4,,,SUBMITTED,,", "", order.CodeRequired},
		{"card-5,op-5,,ACCEPTED,,", "/status", order.CodeInvalidValue},
		{"card-6,op-6,,OUTCOME_UNKNOWN,,", "/status", order.CodeInvalidValue},
		{"card-7,op-7,,,,", "/status", order.CodeRequired},
		{"card-8,op 8,,SUBMITTED,,", "/operationId", order.CodeInvalidFormat},
		{testPAN + ",op-9,,SUBMITTED,,", "/cardId", order.CodeCardNumber},
		{"card-10,op-10,,SUBMITTED,PIGEON,", "/distributionChannel", order.CodeInvalidValue},
		{"card-11,op-11,,SUBMITTED,,WHIM", "/issuance", order.CodeInvalidValue},
		{"card-12,op-12,,SUBMITTED", "", order.CodeInvalidCSV},
		{`card-12,12" op,,SUBMITTED,,`, "", order.CodeInvalidCSV},
		{`card-12,"op"-12,,SUBMITTED,,`, "", order.CodeInvalidCSV},
		{"card-13,op-1,,SUBMITTED,,", "/cardId", "idempotency-conflict"},                    // line 2's operation
		{"card-14," + operation + ",,SUBMITTED,,", "/cardId", "idempotency-conflict"},       // an order of ours
		{"card-here,op-1,request-here,SUBMITTED,,", "/operationId", "idempotency-conflict"}, // two orders
		{"card-here,,request-here,SUBMITTED,,", "known", ""},                                // stays as it is
		{"card-1,op-1,,SHIPPED,,", "known", ""},                                             // likewise
		{"card-19,\xff,,SUBMITTED,,", "/operationId", order.CodeInvalidFormat},
		{"card-1,op-20,r-20,READY,,", "", ""}, // a card may have several
	}
	var file strings.Builder
	want := app.ImportSummary{Read: len(lines) - 1}
	for i, l := range lines {
		file.WriteString(l.line + "\r\n")
		switch {
		case i == 0:
		case l.pointer == "known":
			want.Known++
		case l.code == "":
			want.Imported++
		default:
			want.Refused++
		}
	}
	sum, faults := b.take(file.String(), true, false)
	if sum != want {
		t.Errorf("%+v, want %+v", sum, want)
	}
	for i, l := range lines {
		switch got := faults[i+1]; {
		case l.code == "" && len(got) == 0:
		case l.code == "" || len(got) != 1 || got[0].Pointer != l.pointer || got[0].Code != l.code:
			t.Errorf("line %d: %+v, want %s %s", i+1, got, l.pointer, l.code)
		case strings.Contains(got[0].Detail, testPAN) || strings.Contains(got[0].Detail, "PIGEON"):
			t.Errorf("line %d repeats a value: %s", i+1, got[0].Detail)
		}
	}
	if a := b.get(here); a.view.Status != "SHIPPED" || strings.Contains(a.text, "imported") {
		t.Errorf("an order of ours has changed: %s", a.text)
	}
	for file, want := range map[string]string{
		"": "must name the members", "cardId,status,pan\n": "must name the members", "cardId,cardId\n": "must name the members",
		"cardId,operationId,status\n\"card-1,op-1,READY\ncard-2,op-2,READY\n": "line 2: ", // who knows how many lines that are
	} {
		_, err := app.Import(t.Context(), b.env.ServiceConfig(), slog.New(slog.DiscardHandler), app.ImportJob{
			IssuerID: local.IssuerID, File: strings.NewReader(file), CSV: true,
		})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("file %q: %v", file, err)
		}
	}
}

// Nothing is kept of an imported order's content, and nothing that can be done with it
// needs any.
func TestImportedOrderOnItsWay(t *testing.T) {
	t.Parallel()
	sim := fast
	sim.StopAt = d1sim.CardProdReady
	b := newBank(t, sim)
	operation := b.older(b.thales("way"))
	if sum, faults := b.take(fmt.Sprintf("cardId,operationId,issuerRequestId,status\ncard-way,%s,request-way,SUBMITTED\n", operation), true, false); sum.Imported != 1 {
		t.Fatalf("%+v %v", sum, faults)
	}
	id := b.byCard("card-way").view.ID
	b.await(id, "READY")
	cancel := b.want(id, body{"type": "CANCEL"})
	b.changeIs(id, cancel.ID, "ACCEPTED")
	b.await(id, "CANCELLED")
	if a := b.do(http.MethodPost, orders+"/"+id+"/reorder", http.Header{"Idempotency-Key": {"again"}}, mustJSON(t, body{"encryptedData": b.jwe()})); a.status != http.StatusConflict {
		t.Errorf("ordered again, of nothing: %d %s", a.status, a.text)
	}
	b.noGaps(id)
	for _, problem := range []string{"unreadable", "panic"} {
		if b.logged(problem) {
			t.Errorf("the log tells of %s", problem)
		}
	}
}
