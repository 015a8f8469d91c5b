package app_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"cardorder/client"
	"cardorder/internal/d1sim"
	"cardorder/internal/local"
)

const reports = "/v1/issuers/" + local.IssuerID + "/reports/daily"

// The report is what happened, in JSON and in CSV.
func TestDailyReport(t *testing.T) {
	t.Parallel()
	sim := fast
	sim.FailAt = &d1sim.FailAt{Status: d1sim.CardProdException, CardID: "card-failed"}
	b := newBank(t, sim)
	b.await(b.place(b.thales("shipped")), "SHIPPED")
	b.await(b.place(b.thales("silver").with(body{"cardProductId": "silver"})), "SHIPPED")
	b.await(b.place(b.thales("failed")), "FAILED")
	b.script(d1sim.Script{Kind: d1sim.KindProduction, Action: d1sim.ActionReject, IssuerRequestID: "request-open"})
	b.await(b.place(b.thales("open")), "REJECTED")
	b.take("cardId,operationId,status\ncard-older,older,SHIPPED\n", true, false)

	// Days of a time zone far away: the events are all on one of its days, or on two.
	zone, err := time.LoadLocation("Pacific/Kiritimati")
	if err != nil {
		t.Fatal(err)
	}
	first, last := query[time.Time](b, `SELECT min(created_at) FROM order_events`).In(zone), query[time.Time](b, `SELECT max(created_at) FROM order_events`).In(zone)
	from, to := first.Format(time.DateOnly), last.Format(time.DateOnly)
	report, err := b.client().DailyReport(t.Context(), client.ReportPeriod{From: from, To: to, TimeZone: zone.String()})
	if err != nil {
		t.Fatal(err)
	}
	totals := make(map[string]client.DailyCount)
	for _, c := range report.Data {
		if c.Date < from || c.Date > to || c.BatchID != "" {
			t.Errorf("a line of another day, or of a batch: %+v", c)
		}
		sum := totals[c.CardProductID]
		sum.Accepted, sum.Submitted, sum.Produced, sum.Shipped = sum.Accepted+c.Accepted, sum.Submitted+c.Submitted, sum.Produced+c.Produced, sum.Shipped+c.Shipped
		sum.Failed, sum.Cancelled, sum.Open = sum.Failed+c.Failed, sum.Cancelled+c.Cancelled, sum.Open+c.Open
		totals[c.CardProductID] = sum
	}
	if len(totals) != 2 || totals["gold"] != (client.DailyCount{Accepted: 3, Submitted: 2, Produced: 1, Shipped: 1, Failed: 1, Open: 1}) ||
		totals["silver"] != (client.DailyCount{Accepted: 1, Submitted: 1, Produced: 1, Shipped: 1}) {
		t.Errorf("the report says %+v", report)
	}

	header := bearer(b.env.Ready.Token)
	header.Set("Accept", "text/csv")
	a := b.send(http.MethodGet, b.env.Ready.APIURL+reports+"?from="+from+"&to="+to+"&timeZone="+zone.String(), header, "")
	want := "date,cardProductId,batchId,accepted,submitted,produced,shipped,failed,cancelled,open\n"
	for _, c := range report.Data {
		want += fmt.Sprintf("%s,%s,,%d,%d,%d,%d,%d,%d,%d\n", c.Date, c.CardProductID, c.Accepted, c.Submitted, c.Produced, c.Shipped, c.Failed, c.Cancelled, c.Open)
	}
	if media := a.header.Get("Content-Type"); a.text != want || !strings.HasPrefix(media, "text/csv") {
		t.Errorf("as %s:\n%s\nwant\n%s", media, a.text, want)
	}
}

func TestDailyReportRefusals(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	for query, parameter := range map[string]string{
		"": "from", "?to=2026-01-01": "from", "?from=yesterday": "from", "?from=2026-02-30": "from", "?from=2026-01-01T00:00:00Z": "from",
		"?from=2026-01-02&to=2026-01-01": "to", "?from=2026-01-01&to=2026-02-01": "to",
		"?from=2026-01-01&timeZone=Paris": "timeZone", "?from=2026-01-01&timeZone=Local": "timeZone", "?from=2026-01-01&timeZone=": "timeZone",
		"?from=2026-01-01&timeZone=../../etc/passwd": "timeZone", "?from=2026-01-01&until=2026-01-01": "until",
	} {
		a := b.do(http.MethodGet, reports+query, nil, nil)
		if a.status != http.StatusBadRequest || len(a.view.Errors) == 0 || !strings.Contains(a.text, `"parameter":"`+parameter+`"`) {
			t.Errorf("%s: %d %s", query, a.status, a.text)
		}
	}
	if a := b.do(http.MethodGet, reports, nil, nil); !strings.Contains(a.text, `"code":"required"`) {
		t.Errorf("without from: %s", a.text)
	}
	a := b.do(http.MethodGet, reports+"?from=2026-01-01&to=2026-01-31&timeZone=America/Sao_Paulo", nil, nil)
	var report client.DailyReport
	if err := json.Unmarshal([]byte(a.text), &report); err != nil || a.status != http.StatusOK || report.Data == nil || len(report.Data) > 0 {
		t.Errorf("a month without orders: %d %s", a.status, a.text)
	}
}
