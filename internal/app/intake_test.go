package app_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"cardorder/client"
	"cardorder/internal/local"
)

// A body that breaks off is not stored, not logged, and D1 is asked for it again.
func TestBodyCutInTheMiddle(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	token := b.token()
	address := strings.TrimPrefix(b.env.Ready.NotificationsURL, "http://")
	for name, rest := range map[string]string{
		"with a length": "Content-Length: 1000\r\n\r\n" + `{"operations":[{"operationId":"tell-tale","operation":"PRODUCE"`,
		"in chunks":     "Transfer-Encoding: chunked\r\n\r\n10\r\n" + `{"operations":[]`,
		"a large one":   fmt.Sprintf("Content-Length: %d\r\n\r\n", 20<<20) + `{"operations":["tell-tale",` + strings.Repeat(" ", 2<<20),
	} {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_, err = fmt.Fprintf(conn, "POST /notifications/d1/v2/issuers/%s/cards HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n%s", local.IssuerID, token, rest)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, _ = res.Body.Close(), conn.Close()
		if res.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%s: answered %d", name, res.StatusCode)
		}
	}
	if n := query[int](b, `SELECT count(*) FROM notifications`); n != 0 || b.logged("tell-tale") {
		t.Errorf("%d are stored, or the log tells of it", n)
	}
	if status := b.notify([]byte(`{"operations":[1]}`)); status != http.StatusNoContent {
		t.Errorf("the next one was answered %d", status)
	}
}

// What one issuer is told never reaches the order of another, whatever it names.
func TestNotificationForAnotherIssuersCard(t *testing.T) {
	t.Parallel()
	b := newBank(t, untold)
	id := b.place(b.thales("theirs"))
	operation := b.await(id, "SUBMITTED").view.OperationID
	for _, table := range []string{"orders", "order_state", "operations", "card_guard"} {
		b.execute(`UPDATE ` + table + ` SET issuer_id = 'ISSUER0002'`)
	}
	status := b.notify(fmt.Appendf(nil, `{"operations":[{"operationId":%q,"operation":"PRODUCE","status":"PENDING","cardId":"card-theirs",`+
		`"issuerRequestId":"request-theirs","details":{"status":"CARD_PROD_READY"}}]}`, operation))
	if status != http.StatusNoContent {
		t.Errorf("answered %d", status)
	}
	if n := query[int](b, `SELECT count(*) FROM notifications WHERE outcome = 'parked' AND order_id IS NULL`); n != 1 {
		t.Errorf("%d are parked, want 1", n)
	}
	if got := query[string](b, `SELECT status FROM order_state`); got != "SUBMITTED" {
		t.Errorf("the other issuer's order is %s", got)
	}
}

// A card number in what D1 tells, wherever it stands, rests nowhere in clear and is shown to
// nobody; what else D1 tells counts.
func TestCardNumberInANotification(t *testing.T) {
	t.Parallel()
	sim := fast
	sim.HoldNotifications = true
	b := newBank(t, sim)
	id := b.place(b.thales("clear"))
	operation := b.await(id, "SUBMITTED").view.OperationID
	tell := func(operationID, kind, card, status string, more body) {
		t.Helper()
		details := body{
			"status": status, "reason": testPAN, "productionSite": "site " + testPAN, "trackingType": testPAN, "dueDate": testPAN,
			"shipment": body{"carrier": testPAN, "trackingNumber": testPAN, "status": testPAN, "message": testPAN, "trackingUrl": "https://x.example/?" + testPAN},
		}
		op := body{
			"operationId": operationID, "operation": kind, "status": "PENDING", "cardId": card, "startTime": "2026-01-01T00:00:00Z",
			"error": testPAN, "errorCode": testPAN, "details": details,
		}
		if status := b.notify(mustJSON(t, body{"operations": []body{op.with(more)}})); status != http.StatusNoContent {
			t.Errorf("answered %d", status)
		}
	}
	tell(operation, "PRODUCE", "card-clear", "CARD_SHIPPED", nil)
	tell(operation, "PRODUCE", "card-clear", "POLISHED-"+testPAN, body{"inputFileName": testPAN})
	tell("somebodys", "PRODUCE", testPAN, "CARD_PROD_READY", nil)
	tell("somebodys-file", "PRODUCE", "card-clear", "CARD_PROD_READY", body{"issuerRequestId": testPAN})
	tell("another", testPAN, testPAN, testPAN, body{"status": testPAN})
	if a := b.await(id, "SHIPPED"); len(a.view.Shipments) != 1 || !a.needs("unknown-status") || strings.Contains(a.text, testPAN) {
		t.Errorf("the order: %s", a.text)
	}
	if a := b.do(http.MethodGet, orders+"/"+id+"/timeline", nil, nil); strings.Contains(a.text, testPAN) || !strings.Contains(a.text, "CARD_SHIPPED") {
		t.Errorf("its timeline: %s", a.text)
	}
	if n := query[int](b, `SELECT count(*) FROM notifications WHERE order_id IS NULL`); n != 3 {
		t.Errorf("%d belong to no order, want 3", n)
	}
	for _, table := range []string{"order_state", "order_events", "shipments", "notifications", "operations", "attempts"} {
		if n := query[int](b, `SELECT count(*) FROM `+table+` AS r WHERE r::text LIKE '%`+testPAN+`%'`); n != 0 {
			t.Errorf("%s has it in %d rows", table, n)
		}
	}
}

// tell sends a notification past the simulator, which takes no large ones.
func (b *bank) tell(issuer string, header http.Header, content string) answer {
	b.t.Helper()
	return b.send(http.MethodPost, b.env.Ready.NotificationsURL+"/notifications/d1/v2/issuers/"+issuer+"/cards", header, content)
}

// A notification of many operations is stored in parts, each operation once, and what is
// about no order is counted by its kind.
func TestLargeNotification(t *testing.T) {
	t.Parallel()
	b := newBank(t, untold)
	id := b.place(b.thales("needle"))
	operation := b.await(id, "SUBMITTED").view.OperationID
	const many = 3000
	var large strings.Builder
	large.WriteString(`{"operations":[`)
	for i := range many {
		fmt.Fprintf(&large, `{"operationId":"op-%d","operation":"SUSPEND","cardId":"card-%d","filler":%q},`, i, i, strings.Repeat("x", 400))
		if i == many/2 {
			fmt.Fprintf(&large, `{"operationId":%q,"operation":"PRODUCE","status":"PENDING","details":{"status":"CARD_PROD_READY"}},`, operation)
		}
	}
	large.WriteString(`{"operation":"Anything else"},{}]}`)
	for range 2 { // the second time all is known
		if a := b.tell(local.IssuerID, bearer(b.token()), large.String()); a.status != http.StatusNoContent {
			t.Fatalf("answered %d", a.status)
		}
	}
	if n := query[int](b, `SELECT count(*) FROM notifications WHERE times_seen = 2 AND outcome = 'ignored'`); n != many+2 {
		t.Errorf("%d are stored, want %d", n, many+2)
	}
	if a := b.get(id); a.view.Status != "READY" {
		t.Errorf("the order is %s", a.view.Status)
	}
	b.wantMetrics(
		fmt.Sprintf(`cardorder_ignored_notifications_total{issuer=%q,operation="SUSPEND"} %d`, local.IssuerID, many),
		fmt.Sprintf(`cardorder_ignored_notifications_total{issuer=%q,operation="other"} 1`, local.IssuerID),
		fmt.Sprintf(`cardorder_ignored_notifications_total{issuer=%q,operation="none"} 1`, local.IssuerID),
		fmt.Sprintf(`cardorder_notifications_total{issuer=%q,outcome="applied"} 1`, local.IssuerID),
	)
}

// An operator has what was taken for somebody else's applied after all.
func TestReplayOfNotifications(t *testing.T) {
	t.Parallel()
	b := newBank(t, untold)
	c := b.client()
	b.notify([]byte(`{"operations":[{"operationId":"early","operation":"PRODUCE","status":"PENDING","cardId":"card-late",` +
		`"issuerRequestId":"request-late","details":{"status":"CARD_PROD_READY"}},{"operation":"SUSPEND"}]}`))
	b.execute(`UPDATE notifications SET outcome = 'foreign', next_try_at = NULL WHERE outcome = 'parked'`)
	foreign := query[int64](b, `SELECT id FROM notifications WHERE outcome = 'foreign'`)
	if done, err := c.ReplayNotification(t.Context(), foreign); err != nil || done.Outcome != "parked" || done.OrderID != "" {
		t.Errorf("before there is an order: %+v, %v", done, err)
	}
	b.execute(`UPDATE notifications SET outcome = 'foreign', next_try_at = NULL WHERE outcome = 'parked'`)
	if _, err := c.PauseLane(t.Context(), "d1", "only notifications are to tell of the order"); err != nil {
		t.Fatal(err)
	}
	id := b.place(b.thales("late"))
	for range 2 {
		done, err := c.ReplayNotification(t.Context(), foreign)
		if err != nil || done.ID != foreign || done.Outcome != "applied" || done.OrderID != id {
			t.Errorf("replayed: %+v, %v", done, err)
		}
	}
	version := b.get(id).view.Version
	day := client.Replay{From: time.Now().Add(-time.Hour), To: time.Now().Add(time.Hour)}
	done, err := c.ReplayNotifications(t.Context(), day)
	if err != nil || done.Outcomes["applied"] != 1 || done.Outcomes["ignored"] != 1 || done.Replayed != 2 || done.NextCursor != "" {
		t.Errorf("replayed: %+v, %v", done, err)
	}
	day.Outcome = "foreign"
	if done, err = c.ReplayNotifications(t.Context(), day); err != nil || done.Replayed != 0 {
		t.Errorf("replayed foreign ones: %+v, %v", done, err)
	}
	if got := b.get(id).view.Version; got != version {
		t.Errorf("replaying what was heard made version %d of %d", got, version)
	}
	if _, err = c.ReplayNotification(t.Context(), foreign+1000); !isProblem(err, client.ProblemUnknownNotification) {
		t.Errorf("of one that is not there: %v", err)
	}
	for _, content := range []string{
		`{}`, `{"from":"2026-01-01T00:00:00Z","to":"2026-01-01T00:00:00Z"}`, `{"from":"yesterday","to":"2026-01-01T00:00:00Z"}`,
		`{"from":"2026-01-01T00:00:00Z","to":"2026-01-02T00:00:00Z","outcome":"repeated"}`,
		`{"from":"2026-01-01T00:00:00Z","to":"2026-01-02T00:00:00Z","cursor":"7"}`,
		`{"from":"2026-01-01T00:00:00Z","to":"2026-01-02T00:00:00Z","all":true}`,
	} {
		if a := b.action("/v1/issuers/"+local.IssuerID+"/notifications/replay", content, nil); a.status != http.StatusBadRequest {
			t.Errorf("%s was answered %d", content, a.status)
		}
	}
	b.noGaps(id)
}
