package resources

import (
	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var jobs = Resource[batchv1.Job]{
	Group: "batch", Version: "v1", Kind: "Job", Plural: "jobs",
	Categories: []string{"all"},
	Prefix:     "jobs",
	List:       func() runtime.Object { return &batchv1.JobList{} },
	Status:     &Part[batchv1.Job]{},
}
