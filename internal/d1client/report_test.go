package d1client

import (
	"testing"

	"cardorder/internal/order"
)

// What an operation says of its order, with the words that the configuration explains.
func TestReportAndTracking(t *testing.T) {
	t.Parallel()
	words := order.Vocabulary{OnHold: []string{"CARD_PROD_HELD"}, Delivered: []string{"POD", "zugestellt"}, Returned: []string{"RTS"}}
	for name, c := range map[string]struct {
		raw      string
		report   order.Report
		tracking order.Tracking
	}{
		"nothing": {raw: `{}`},
		"a step": {
			raw: `{"operationId":"op","status":"PENDING","details":{"status":"CARD_PROD_READY","dueDate":"2026-12-01","productionSite":"Tczew"}}`,
			report: order.Report{OperationID: "op", Operation: order.OperationPending, Status: "CARD_PROD_READY",
				DueDate: "2026-12-01", Site: "Tczew"},
			tracking: order.Tracking{Operation: order.OperationPending, Status: "CARD_PROD_READY"},
		},
		"on hold, due at a time of the centre": {
			raw:      `{"status":"PENDING","details":{"status":"CARD_PROD_HELD","dueDate":"2026-12-01T00:30:00+01:00"}}`,
			report:   order.Report{Operation: order.OperationPending, Status: "CARD_PROD_HELD", OnHold: true, DueDate: "2026-12-01T00:30:00+01:00"},
			tracking: order.Tracking{Operation: order.OperationPending, Status: "CARD_PROD_HELD"},
		},
		"due at a time in no zone": {
			raw:      `{"status":"PENDING","details":{"status":"CARD_PROD_READY","dueDate":"2026-12-01T16:00"}}`,
			report:   order.Report{Operation: order.OperationPending, Status: "CARD_PROD_READY", DueDate: "2026-12-01T16:00:00"},
			tracking: order.Tracking{Operation: order.OperationPending, Status: "CARD_PROD_READY"},
		},
		"delivered": {
			raw: `{"status":"SUCCESSFUL","details":{"status":"CARD_SHIPPED","shipment":{"trackingNumber":" T1 ","status":"POD","message":"left at the door"}}}`,
			report: order.Report{Operation: order.OperationSuccessful, Status: "CARD_SHIPPED",
				Parcel: order.Parcel{TrackingNumber: "T1", Status: order.Delivered}},
			tracking: order.Tracking{Operation: order.OperationSuccessful, Status: "CARD_SHIPPED",
				Parcel: order.Parcel{TrackingNumber: "T1", Status: order.Delivered}},
		},
		"a code in other letters": {
			raw:      `{"details":{"shipment":{"trackingNumber":"T1","status":"Zugestellt"}}}`,
			report:   order.Report{Parcel: order.Parcel{TrackingNumber: "T1"}},
			tracking: order.Tracking{Parcel: order.Parcel{TrackingNumber: "T1"}},
		},
		"a return that the hub follows": {
			raw:    `{"operation":"STANDALONE_TRACKING","status":"SUCCESSFUL","details":{"trackingType":"RETURN","status":"CARD_RETURNED","shipment":{"status":"RTS"}}}`,
			report: order.Report{Operation: order.OperationSuccessful, Status: "CARD_RETURNED", Parcel: order.Parcel{Status: order.Returned}},
			tracking: order.Tracking{Operation: order.OperationSuccessful, Type: order.TrackReturn, Status: "CARD_RETURNED",
				Parcel: order.Parcel{Status: order.Returned}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			op, err := ParseOperation([]byte(c.raw))
			if err != nil {
				t.Fatal(err)
			}
			if got := op.Report(words); got != c.report {
				t.Errorf("report %+v, want %+v", got, c.report)
			}
			if got := op.Tracking(words); got != c.tracking {
				t.Errorf("tracking %+v, want %+v", got, c.tracking)
			}
		})
	}
}
