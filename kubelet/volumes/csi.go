package volumes

import (
	"context"
	"fmt"
)

// csi recognizes volumes of CSI drivers, of which this node can register none yet, and
// answers as for a driver that is not installed.
var csi = Type{
	Plugin: "kubernetes.io~csi",
	Match:  func(q *request) bool { return q.driver() != "" },
	Update: func(_ context.Context, q *request) (Mounted, error) {
		return Mounted{}, fmt.Errorf("driver name %s not found in the list of registered CSI drivers", q.driver())
	},
}

func (q *request) driver() string {
	switch {
	case q.pv != nil && q.pv.Spec.CSI != nil:
		return q.pv.Spec.CSI.Driver
	case q.pv == nil && q.volume.CSI != nil:
		return q.volume.CSI.Driver
	}
	return ""
}
