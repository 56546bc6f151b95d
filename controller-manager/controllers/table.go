// Package controllers is the table of all controllers. Adding one is a folder
// beside this file and a row in it; package runtime tells how.
package controllers

import (
	"github.com/keelson/keelson/controller-manager/controllers/clusterroleaggregation"
	"github.com/keelson/keelson/controller-manager/controllers/cronjob"
	"github.com/keelson/keelson/controller-manager/controllers/csrapproving"
	"github.com/keelson/keelson/controller-manager/controllers/csrsigning"
	"github.com/keelson/keelson/controller-manager/controllers/daemonset"
	"github.com/keelson/keelson/controller-manager/controllers/deployment"
	"github.com/keelson/keelson/controller-manager/controllers/disruption"
	"github.com/keelson/keelson/controller-manager/controllers/endpoints"
	"github.com/keelson/keelson/controller-manager/controllers/endpointslice"
	"github.com/keelson/keelson/controller-manager/controllers/endpointslicemirroring"
	"github.com/keelson/keelson/controller-manager/controllers/ephemeralvolume"
	"github.com/keelson/keelson/controller-manager/controllers/garbagecollector"
	"github.com/keelson/keelson/controller-manager/controllers/job"
	"github.com/keelson/keelson/controller-manager/controllers/legacytokencleaner"
	"github.com/keelson/keelson/controller-manager/controllers/namespace"
	"github.com/keelson/keelson/controller-manager/controllers/nodeipam"
	"github.com/keelson/keelson/controller-manager/controllers/nodelifecycle"
	"github.com/keelson/keelson/controller-manager/controllers/persistentvolume"
	"github.com/keelson/keelson/controller-manager/controllers/podgc"
	"github.com/keelson/keelson/controller-manager/controllers/replicaset"
	"github.com/keelson/keelson/controller-manager/controllers/replicationcontroller"
	"github.com/keelson/keelson/controller-manager/controllers/resourcequota"
	"github.com/keelson/keelson/controller-manager/controllers/rootca"
	"github.com/keelson/keelson/controller-manager/controllers/serviceaccount"
	"github.com/keelson/keelson/controller-manager/controllers/serviceaccounttoken"
	"github.com/keelson/keelson/controller-manager/controllers/servicecidr"
	"github.com/keelson/keelson/controller-manager/controllers/statefulset"
	"github.com/keelson/keelson/controller-manager/controllers/tainteviction"
	"github.com/keelson/keelson/controller-manager/controllers/tokencleaner"
	"github.com/keelson/keelson/controller-manager/controllers/ttlafterfinished"
	"github.com/keelson/keelson/controller-manager/controllers/volumeprotection"
	"github.com/keelson/keelson/controller-manager/runtime"
)

// Table is every controller, in the order in which they are built. The order
// carries no meaning otherwise.
var Table = []runtime.Row{
	// Workloads.
	daemonset.Row,
	deployment.Row,
	disruption.Row,
	replicaset.Row,
	replicationcontroller.Row,
	cronjob.Row,
	job.Row,
	statefulset.Row,
	// Networking.
	endpoints.Row,
	endpointslice.Row,
	endpointslicemirroring.Row,
	servicecidr.Row,
	// Cluster.
	clusterroleaggregation.Row,
	csrapproving.Row,
	csrsigning.Cleaner,
	csrsigning.Row,
	garbagecollector.Row,
	legacytokencleaner.Row,
	namespace.Row,
	nodeipam.Row,
	nodelifecycle.Row,
	podgc.Row,
	resourcequota.Row,
	rootca.Row,
	serviceaccount.Row,
	serviceaccounttoken.Row,
	tainteviction.Row,
	tokencleaner.Row,
	ttlafterfinished.Row,
	// Storage.
	ephemeralvolume.Row,
	persistentvolume.Row,
	volumeprotection.Claims,
	volumeprotection.Volumes,
	volumeprotection.Classes,
}
